"""The samples of each evaluation, in ``evaluations/step<N>.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from areal_api.evaluation_columns import EVALUATION_COLUMNS
from areal_api.rollout_columns import file_name
from areal_trainer.evaluation.metrics import SetResult
from areal_trainer.rollout.dump import files_by_step, problem_of, utf8, write_file

SCHEMA = pa.schema([(column.name, pa.type_for_alias(column.type)) for column in EVALUATION_COLUMNS])


class EvaluationRecords:
    """The files of a run, on rank 0. Those of the oldest evaluations are deleted beyond ``max_bytes``."""

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def write(self, step: int, results: Sequence[SetResult]) -> Path:
        """Write an evaluation after ``step`` steps; returns the file. Raises ``RuntimeError`` if that fails."""
        target = self._directory / file_name(step)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_file(target, to_table(results))
            self._prune(step)
        except OSError as error:
            raise RuntimeError(
                f"{target} cannot be written: {error.strerror or error}; free some space, lower "
                "evaluator.dump_max_bytes or set evaluator.dump_to_file=false, and start the run again to resume it"
            ) from error
        return target

    def _prune(self, newest: int) -> None:
        sizes = {step: path.stat().st_size for step, path in files_by_step(self._directory)}
        for step in sorted(sizes):
            if step != newest and sum(sizes.values()) > self._max_bytes:
                (self._directory / file_name(step)).unlink(missing_ok=True)
                del sizes[step]


def to_table(results: Sequence[SetResult]) -> pa.Table:
    """The samples in ``SCHEMA``."""
    rows: list[dict[str, Any]] = []
    for result in results:
        for index, problem in enumerate(result.problems):
            for number, one in enumerate(problem):
                answer = None if result.answers is None else result.answers[index][number]
                rows.append(
                    {
                        "set": result.name,
                        "problem": problem_of(one),
                        "task_id": utf8(one.task_id),
                        "sample": number,
                        "reward": one.reward,
                        "answer": None if answer is None else utf8(answer),
                        "finish_reason": utf8(one.finish_reason),
                        "prompt": utf8(one.prompt),
                        "completion": utf8(one.completion),
                        "completion_tokens": one.completion_len,
                        "version": one.tail_version,
                    }
                )
    return pa.Table.from_pylist(rows, schema=SCHEMA)
