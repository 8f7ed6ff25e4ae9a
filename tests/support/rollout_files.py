"""Reads and writes the samples of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from areal_api import names
from areal_api.rollout_columns import file_name, step_of
from areal_trainer.rollout.dump import SCHEMA

Sample = dict[str, Any]


def read_samples(run: Path, columns: Sequence[str] | None = None) -> dict[int, list[Sample]]:
    """The rows of each step's file."""
    found = {step_of(path.name): path for path in names.rollouts_dir(run).rglob("*.parquet")}
    return {step: pq.read_table(path, columns=columns).to_pylist() for step, path in found.items() if step is not None}


def sample(task: str = "1", **changes: Any) -> Sample:
    """A row whose prompt has two tokens and whose completion has three."""
    return {
        "step": 1, "epoch": 1, "version": 5, "task_id": task, "problem": task, "group": 0, "sample": 0,
        "outcome": "trained", "reward": 1.0, "finish_reason": "stop", "prompt": f"problem {task}",
        "completion": "an answer", "prompt_tokens": 2, "trained_tokens": 3, "head_version": 3, "tail_version": 5,
        "token_ids": [1, 2, 3, 4, 5], "tokens": ["problem ", task, "an", " answer", "<end>"],
        "loss_mask": [False, False, True, True, True], "logprobs": [0.0, 0.0, -0.5, -0.25, -2.0],
        "versions": [-1, -1, 3, 4, 5], "advantages": [0.0, 0.0, 1.5, 1.5, 1.5], **changes,
    }  # fmt: skip


def write_samples(run: Path, step: int, *samples: Sample) -> Path:
    """Write the file of a step."""
    names.rollouts_dir(run).mkdir(exist_ok=True)
    path = names.rollouts_dir(run) / file_name(step)
    pq.write_table(pa.Table.from_pylist([one | {"step": step} for one in samples], schema=SCHEMA), path)
    return path
