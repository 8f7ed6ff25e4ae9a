"""The samples of a step, problem by problem, from the files that ``rollout.dump_to_file`` writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from areal_api import names
from areal_api.rollout_columns import COLUMNS, file_name
from areal_launcher.bounded_files import DamagedFileError, number
from areal_launcher.parquet_files import open_parquet, rows_of
from areal_launcher.ui.sample_files import steps_in

MAX_TEXT = 20_000  # characters of a prompt or completion that are shown
MAX_GROUPS = 100  # problems on a page
MAX_SAMPLES = 64  # of a problem on a page
MAX_TOKENS = 20_000  # of a sample
MAX_TOKEN_TEXT = 200  # characters of a token
MAX_SEARCHED = 1_000  # steps in which a problem is looked for
MAX_HISTORY_SAMPLES = 8  # of a problem in one of these steps

TOKEN_COLUMNS = tuple(column.name for column in COLUMNS if column.type.startswith("list<"))
ROW_COLUMNS = tuple(column.name for column in COLUMNS if column.name not in TOKEN_COLUMNS)
SHOWN_TOKEN_COLUMNS = ("tokens", "loss_mask", "logprobs", "versions", "advantages")


Kind = Literal["all", "trained", "rejected", "truncated"]


@dataclass(frozen=True)
class Filter:
    """Which samples are shown."""

    text: str = ""  # in the prompt or the completion, whatever the case
    low: float = float("-inf")  # rewards
    high: float = float("inf")
    shortest: int = 0  # tokens that the policy generated
    longest: int = 2**53
    only: Kind = "all"

    def admits(self, sample: dict[str, Any]) -> bool:
        """Whether a sample is shown."""
        return (
            self.low <= sample["reward"] <= self.high
            and self.shortest <= sample["trained_tokens"] <= self.longest
            and self.only in ("all", sample["outcome"], "truncated" if sample["finish_reason"] == "length" else "")
            and (not self.text or self.text.lower() in f"{sample['prompt']}\n{sample['completion']}".lower())
        )


def steps(run: Path) -> list[int]:
    """Steps whose samples were written, in order."""
    return steps_in(names.rollouts_dir(run))


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
        "groups": [_group(group, limit=MAX_SAMPLES) for group in shown],
    }


def tokens(run: Path, step: int, row: int) -> dict[str, Any]:
    """The tokens of a row of a step's file, at most ``MAX_TOKENS``, with their values.

    Raises ``FileNotFoundError`` if there is no such row, and ``DamagedFileError`` if the step cannot be read.
    """
    path = names.rollouts_dir(run) / file_name(step)
    with open_parquet(path, COLUMNS) as file:
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if row < rows:
                columns = file.read_row_group(index, columns=list(SHOWN_TOKEN_COLUMNS), use_threads=False)
                found = {name: columns[name][row].as_py() or [] for name in SHOWN_TOKEN_COLUMNS}
                return _shown_tokens(path, found)
            row -= rows
    raise FileNotFoundError(path)


def history(run: Path, problem: str) -> dict[str, Any]:
    """The samples of a problem in the newest ``MAX_SEARCHED`` steps, in the order of the steps.

    Raises ``FileNotFoundError`` if there are none. Files that cannot be read are counted.
    """
    every = steps(run)
    found, damaged = [], 0
    for step in every[-MAX_SEARCHED:]:
        try:
            samples = _samples_of(names.rollouts_dir(run) / file_name(step), problem)
        except FileNotFoundError:  # deleted meanwhile: rollout.dump_max_bytes
            continue
        except (DamagedFileError, OSError):
            damaged += 1
            continue
        if samples:
            found.append({"step": step, **_group(samples, limit=MAX_HISTORY_SAMPLES)})
    if not found:
        raise FileNotFoundError(problem)
    return {"steps": found, "not_searched": max(0, len(every) - MAX_SEARCHED), "damaged": damaged}


def _samples_of(path: Path, problem: str) -> list[dict[str, Any]]:
    """The samples of a problem in a file. Reads one column of the other problems."""
    found: list[dict[str, Any]] = []
    before = 0
    with open_parquet(path, COLUMNS) as file:
        for index in range(file.num_row_groups):
            known = file.read_row_group(index, columns=["problem"], use_threads=False)["problem"]
            at = pc.indices_nonzero(pc.equal(known, problem))
            if len(at):
                rows = file.read_row_group(index, columns=list(ROW_COLUMNS), use_threads=False).take(at).to_pylist()
                found += [row | {"row": before + int(place)} for row, place in zip(rows, at.to_pylist(), strict=True)]
            before += len(known)
    if any(value is None for row in found for value in row.values()):
        raise DamagedFileError(f"{path} is damaged: a sample lacks a value; delete it")
    return found


def _shown_tokens(path: Path, found: dict[str, list[Any]]) -> dict[str, Any]:
    lengths = {len(values) for values in found.values()}
    if len(lengths) != 1:
        raise DamagedFileError(f"{path} is damaged: the values of a sample's tokens have different lengths; delete it")
    shown: dict[str, Any] = {name: [number(value) for value in values[:MAX_TOKENS]] for name, values in found.items()}
    shown["tokens"] = [(text or "")[:MAX_TOKEN_TEXT] for text in found["tokens"][:MAX_TOKENS]]
    shown["loss_mask"] = [value is True for value in found["loss_mask"][:MAX_TOKENS]]
    return shown | {"left_out": max(0, lengths.pop() - MAX_TOKENS)}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return rows_of(path, COLUMNS, read=ROW_COLUMNS)


def _group(group: list[dict[str, Any]], *, limit: int) -> dict[str, Any]:
    rewards = [sample["reward"] for sample in group]
    return {
        "task": group[0]["task_id"][:200],
        "problem": group[0]["problem"],
        "prompt": shortened(group[0]["prompt"]),
        "count": len(group),
        "reward": number(sum(rewards) / len(rewards)),
        "samples": [_sample(sample) for sample in group[:limit]],
    }


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "row": sample["row"],
        "completion": shortened(sample["completion"]),
        "reward": number(sample["reward"]),
        "length": sample["trained_tokens"],
        "versions": (sample["head_version"], sample["tail_version"]),
        "truncated": sample["finish_reason"] == "length",
        "rejected": sample["outcome"] == "rejected",
    }


def shortened(text: str) -> str:
    """``text``, as much of it as is shown."""
    left_out = len(text) - MAX_TEXT
    return text if left_out <= 0 else f"{text[:MAX_TEXT]}… ({left_out} more characters)"
