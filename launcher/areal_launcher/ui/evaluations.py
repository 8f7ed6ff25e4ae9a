"""What changed between two evaluations of a run, and the answers of both to a problem."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from areal_api import names
from areal_api.evaluation_columns import EVALUATION_COLUMNS
from areal_api.rollout_columns import file_name
from areal_launcher.bounded_files import number
from areal_launcher.compare import Comparison, comparisons, rewards_of
from areal_launcher.parquet_files import rows_of
from areal_launcher.ui.rollouts import MAX_SAMPLES, shortened

MAX_PROBLEMS = 200  # in each direction
ANSWER_COLUMNS = ("set", "problem", "reward", "finish_reason", "prompt", "completion", "completion_tokens")


def comparison(run: Path, first: int, second: int) -> dict[str, Any]:
    """How the evaluation after step ``second`` differs from that after step ``first``, for each set.

    Raises ``FileNotFoundError`` and ``DamagedFileError`` if one cannot be read.
    """
    before, after = (rewards_of(names.evaluations_dir(run) / file_name(step)) for step in (first, second))
    return {"first": first, "second": second, "sets": [_shown(one) for one in comparisons(before, after)]}


def _shown(one: Comparison) -> dict[str, Any]:
    listed = {
        "better": [asdict(problem) for problem in one.better[:MAX_PROBLEMS]],
        "worse": [asdict(problem) for problem in one.worse[:MAX_PROBLEMS]],
    }
    counts = {"n_better": len(one.better), "n_worse": len(one.worse)}
    return asdict(one) | listed | counts


def answers(run: Path, step: int, *, of: str, problem: str) -> dict[str, Any]:
    """The samples of a problem of the set ``of``. Raises like ``comparison``."""
    rows = rows_of(names.evaluations_dir(run) / file_name(step), EVALUATION_COLUMNS, read=ANSWER_COLUMNS)
    found = [row for row in rows if row["set"] == of and row["problem"] == problem]
    if not found:
        raise FileNotFoundError(problem)
    return {
        "prompt": shortened(found[0]["prompt"]),
        "count": len(found),
        "samples": [
            {
                "reward": number(row["reward"]),
                "completion": shortened(row["completion"]),
                "length": row["completion_tokens"],
                "truncated": row["finish_reason"] == "length",
            }
            for row in found[:MAX_SAMPLES]
        ],
    }
