"""The samples of a step, problem by problem, from the files that ``rollout.dump_to_file`` writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_api import names
from areal_api.rollout_columns import COLUMNS, file_name, step_of
from areal_launcher.bounded_files import DamagedFileError, number
from areal_launcher.parquet_files import open_parquet, rows_of

MAX_STEPS = 1_000_000
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
    with open_parquet(path, COLUMNS) as file:
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
    return rows_of(path, COLUMNS, read=ROW_COLUMNS)


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
