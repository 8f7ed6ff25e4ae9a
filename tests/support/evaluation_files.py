"""Writes the samples of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from areal_api import names
from areal_api.rollout_columns import file_name
from areal_trainer.evaluation.records import SCHEMA


def answer(problem: str, reward: float, **changes: Any) -> dict[str, Any]:
    """A row: one sample of a problem."""
    return {
        "set": "valid", "problem": problem, "task_id": "", "sample": 0, "reward": reward, "answer": None,
        "finish_reason": "stop", "prompt": f"What is {problem}?", "completion": f"I say {reward}",
        "completion_tokens": 3, "version": 0, **changes,
    }  # fmt: skip


def write_evaluation(run: Path, step: int, *rows: dict[str, Any]) -> Path:
    """Write the file of the evaluation after ``step`` steps."""
    path = names.evaluations_dir(run) / file_name(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path)
    return path
