"""The samples of a step, problem by problem, from the files that ``rollout.dump_to_file`` writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from areal_api import names
from areal_api.rollout_columns import COLUMNS, file_name, step_of
from areal_launcher.bounded_files import DamagedFileError, number, opened

MAX_STEPS = 1_000_000
MAX_FILE_BYTES = 2**30
MAX_ROWS = 100_000  # of a file
MAX_TEXT_BYTES = 512 * 2**20  # of the columns read for a page, uncompressed
MAX_VALUES = 64 * 2**20  # of a column of a row group
MAX_TEXT = 20_000  # characters of a prompt or completion that are shown
MAX_GROUPS = 100  # problems on a page
MAX_SAMPLES = 64  # of a problem on a page
MAX_TOKENS = 20_000  # of a sample
MAX_TOKEN_TEXT = 200  # characters of a token

TOKEN_COLUMNS = tuple(column.name for column in COLUMNS if column.type.startswith("list<"))
ROW_COLUMNS = tuple(column.name for column in COLUMNS if column.name not in TOKEN_COLUMNS)
SHOWN_TOKEN_COLUMNS = ("tokens", "loss_mask", "logprobs", "versions", "advantages")


@dataclass(frozen=True)
class Filter:
    """Which samples are shown."""

    text: str = ""  # in the prompt or the completion, whatever the case
    low: float = float("-inf")  # rewards
    high: float = float("inf")
    shortest: int = 0  # tokens that the policy generated

    def admits(self, sample: dict[str, Any]) -> bool:
        """Whether a sample is shown."""
        return (
            self.low <= sample["reward"] <= self.high
            and sample["trained_tokens"] >= self.shortest
            and (not self.text or self.text.lower() in f"{sample['prompt']}\n{sample['completion']}".lower())
        )


def steps(run: Path) -> list[int]:
    """Steps whose samples were written, in order."""
    try:
        with os.scandir(names.rollouts_dir(run)) as files:
            found = (step_of(file.name) for _, file in zip(range(MAX_STEPS), files, strict=False))
            return sorted(step for step in found if step is not None)
    except OSError:
        return []


def page(run: Path, step: int, chosen: Filter, *, offset: int) -> dict[str, Any]:
    """The problems of a step from the ``offset``-th on, those with samples that ``chosen`` admits.

    Raises ``FileNotFoundError`` and ``DamagedFileError`` if the step cannot be read.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    count = 0
    for row, sample in enumerate(_rows(names.rollouts_dir(run) / file_name(step))):
        count += 1
        if chosen.admits(sample):
            groups.setdefault((sample["problem"], sample["prompt"]), []).append(sample | {"row": row})
    shown = list(groups.values())[offset : offset + MAX_GROUPS]
    return {
        "samples": count,
        "step": step,
        "admitted": sum(len(group) for group in groups.values()),
        "problems": len(groups),
        "offset": offset,
        "groups": [_group(group) for group in shown],
    }


def tokens(run: Path, step: int, row: int) -> dict[str, Any]:
    """The tokens of a row of a step's file, at most ``MAX_TOKENS``, with their values.

    Raises ``FileNotFoundError`` if there is no such row, and ``DamagedFileError`` if the step cannot be read.
    """
    path = names.rollouts_dir(run) / file_name(step)
    with _parquet(path) as file:
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if row < rows:
                columns = file.read_row_group(index, columns=list(SHOWN_TOKEN_COLUMNS), use_threads=False)
                found = {name: columns[name][row].as_py() or [] for name in SHOWN_TOKEN_COLUMNS}
                return _shown_tokens(path, found)
            row -= rows
    raise FileNotFoundError(path)


def _shown_tokens(path: Path, found: dict[str, list[Any]]) -> dict[str, Any]:
    lengths = {len(values) for values in found.values()}
    if len(lengths) != 1:
        raise DamagedFileError(f"{path} is damaged: the values of a sample's tokens have different lengths; delete it")
    shown: dict[str, Any] = {name: [number(value) for value in values[:MAX_TOKENS]] for name, values in found.items()}
    shown["tokens"] = [(text or "")[:MAX_TOKEN_TEXT] for text in found["tokens"][:MAX_TOKENS]]
    shown["loss_mask"] = [value is True for value in found["loss_mask"][:MAX_TOKENS]]
    return shown | {"left_out": max(0, lengths.pop() - MAX_TOKENS)}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with _parquet(path) as file:
        size = sum(_column_bytes(file.metadata.row_group(index)) for index in range(file.num_row_groups))
        if size > MAX_TEXT_BYTES:
            raise DamagedFileError(f"{path} has {size} bytes of text, more than the {MAX_TEXT_BYTES} that are shown")
        for index in range(file.num_row_groups):
            for row in file.read_row_group(index, columns=list(ROW_COLUMNS), use_threads=False).to_pylist():
                if any(value is None for value in row.values()):
                    raise DamagedFileError(f"{path} is damaged: a sample lacks a value; delete it")
                yield row


def _column_bytes(group: Any) -> int:
    columns = (group.column(index) for index in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema in ROW_COLUMNS)


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file whose columns and sizes are as expected. Raises ``DamagedFileError`` for any other."""
    with opened(path) as raw:
        if os.fstat(raw.fileno()).st_size > MAX_FILE_BYTES:
            raise DamagedFileError(f"{path} has more than {MAX_FILE_BYTES} bytes; it is not shown")
        try:
            file = pq.ParquetFile(raw)
            _check(path, file)
            yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DamagedFileError(f"{path} is damaged: {_first_line(error)}; delete it") from error


def _check(path: Path, file: pq.ParquetFile) -> None:
    types = {field.name: str(field.type) for field in file.schema_arrow}
    missing = [column.name for column in COLUMNS if types.get(column.name) != _type(column.type)]
    if missing:
        raise DamagedFileError(
            f"{path} was not written by this version: its columns {', '.join(missing)} are absent or of another type"
        )
    groups: Sequence[Any] = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    values = max((group.column(at).num_values for group in groups for at in range(group.num_columns)), default=0)
    if file.metadata.num_rows > MAX_ROWS or values > MAX_VALUES:
        raise DamagedFileError(f"{path} has more than {MAX_ROWS} samples or {MAX_VALUES} values; it is not shown")


def _type(name: str) -> str:
    """How Arrow prints the type of a column that was read from Parquet."""
    names_of_types = {"float32": "float", "float64": "double"}
    if name.startswith("list<"):
        return f"list<element: {_type(name.removeprefix('list<').removesuffix('>'))}>"
    return names_of_types.get(name, name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _group(group: list[dict[str, Any]]) -> dict[str, Any]:
    rewards = [sample["reward"] for sample in group]
    return {
        "task": group[0]["task_id"][:200],
        "prompt": _shortened(group[0]["prompt"]),
        "count": len(group),
        "reward": number(sum(rewards) / len(rewards)),
        "samples": [_sample(sample) for sample in group[:MAX_SAMPLES]],
    }


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "row": sample["row"],
        "completion": _shortened(sample["completion"]),
        "reward": number(sample["reward"]),
        "length": sample["trained_tokens"],
        "versions": (sample["head_version"], sample["tail_version"]),
        "truncated": sample["finish_reason"] == "length",
        "rejected": sample["outcome"] == "rejected",
    }


def _shortened(text: str) -> str:
    left_out = len(text) - MAX_TEXT
    return text if left_out <= 0 else f"{text[:MAX_TEXT]}… ({left_out} more characters)"
