"""Writes the samples of each step to ``rollouts/step<N>.parquet``, in the background.

``add`` only selects samples. A thread converts and writes them, so a step waits for the file system only if it is
``MAX_WAITING`` steps ahead. ``flush`` is called before each recovery checkpoint, and ``discard_after`` when a run
resumes, so the files of a resumed run have every step once.
"""

# T tokens of all samples of a file, B samples

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from areal_api.rollout_columns import COLUMNS, file_name, step_of
from areal_trainer.trajectory import Trajectory

MAX_WAITING = 2  # steps that wait to be written
MAX_STEP_BYTES = 2**30  # of one step's samples in memory
BYTES_PER_TOKEN = 32  # of a sample in memory, without its texts
ROWS_PER_GROUP = 64  # a reader of one sample reads the tokens of so many
REJECTED, TRAINED = "rejected", "trained"

TokenTexts = Callable[[Sequence[int]], list[str]]


def _arrow_type(name: str) -> pa.DataType:
    if name.startswith("list<"):
        return pa.list_(_arrow_type(name.removeprefix("list<").removesuffix(">")))
    return pa.type_for_alias(name)


SCHEMA = pa.schema([(column.name, _arrow_type(column.type)) for column in COLUMNS])


@dataclass(frozen=True, eq=False)
class StepSamples:
    """What one step was trained on, and what was rejected while its batch was collected."""

    step: int
    epoch: int
    version: int  # of the weights before the step
    trained: Sequence[Trajectory]
    advantages: Sequence[NDArray[np.float32]]  # [T] of each trained sample
    rejected: Sequence[Trajectory] = ()


class RolloutDump:
    """The files of a run, on rank 0. The files of the oldest steps are deleted beyond ``max_bytes``."""

    def __init__(self, directory: Path, *, max_bytes: int, token_texts: TokenTexts) -> None:
        """``token_texts`` returns the text of each of some token ids; it is called in the background."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._token_texts = token_texts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout-dump")
        self._waiting: deque[Future[None]] = deque()
        self._sizes: dict[int, int] | None = None  # bytes of each step's file; None before the first write
        self._deleted = 0

    def add(self, samples: StepSamples) -> dict[str, float]:
        """Write the samples in the background; returns statistics. Raises ``RuntimeError`` if a write failed."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= MAX_WAITING):
            self._waiting.popleft().result()
        rows = bounded_rows(samples, min(self._max_bytes, MAX_STEP_BYTES))
        self._waiting.append(self._thread.submit(self._write, samples, rows))
        return {
            "rollout/dump_left_out": float(len(samples.trained) + len(samples.rejected) - len(rows)),
            "rollout/dump_deleted_steps": float(self._deleted),
        }

    def flush(self) -> None:
        """Wait until all samples are on disk. Raises ``RuntimeError`` if a write failed."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Write what waits. Does not raise the error of a failed write."""
        self._thread.shutdown(wait=True)
        self._waiting.clear()

    def discard_after(self, step: int) -> None:
        """Delete the files of later steps, which the run trains again."""
        self.flush()
        self._sizes = None
        discard_after(self._directory, step)

    def _write(self, samples: StepSamples, rows: list[Row]) -> None:
        target = self._directory / file_name(samples.step)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_file(target, to_table(samples, rows, self._token_texts))
            self._prune(samples.step, target.stat().st_size)
        except OSError as error:
            raise RuntimeError(
                f"{target} cannot be written: {error.strerror or error}; free some space, lower "
                "rollout.dump_max_bytes or set rollout.dump_to_file=false, and start the run again to resume it"
            ) from error

    def _prune(self, step: int, size: int) -> None:
        if self._sizes is None:
            self._sizes = {found: path.stat().st_size for found, path in files_by_step(self._directory)}
        self._sizes[step] = size
        total = sum(self._sizes.values())
        for oldest in sorted(self._sizes):
            if total <= self._max_bytes or oldest == step:
                return
            (self._directory / file_name(oldest)).unlink(missing_ok=True)
            total -= self._sizes.pop(oldest)
            self._deleted += 1


@dataclass(frozen=True, eq=False)
class Row:
    """A sample and what its file says about it beside its own values."""

    trajectory: Trajectory
    sample: int
    advantages: NDArray[np.float32]
    outcome: str


def bounded_rows(samples: StepSamples, max_bytes: int) -> list[Row]:
    """The samples that fit into ``max_bytes`` of memory, trained ones first."""
    seen: Counter[tuple[str, int]] = Counter()
    rows, left = [], max_bytes
    trained = zip(samples.trained, samples.advantages, strict=True)
    rejected = ((one, np.zeros(len(one), dtype=np.float32)) for one in samples.rejected)
    for outcome, part in ((TRAINED, trained), (REJECTED, rejected)):
        for trajectory, advantages in part:
            size = BYTES_PER_TOKEN * len(trajectory) + 4 * (len(trajectory.prompt) + len(trajectory.completion))
            if size <= left:
                left -= size
                rows.append(Row(trajectory, seen[outcome, trajectory.group], advantages, outcome))
            seen[outcome, trajectory.group] += 1
    return rows


def to_table(samples: StepSamples, rows: Sequence[Row], token_texts: TokenTexts) -> pa.Table:
    """The rows in ``SCHEMA``."""
    all_of = [row.trajectory for row in rows]
    offsets = np.cumsum([0, *(len(one) for one in all_of)], dtype=np.int32)

    def per_token(parts: list[NDArray], dtype: type[np.generic]) -> NDArray:
        return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)

    ids_T = per_token([one.input_ids for one in all_of], np.int64)
    tokens = {
        "token_ids": ids_T.astype(np.int32),
        "tokens": _texts(ids_T, token_texts),
        "loss_mask": per_token([one.loss_mask for one in all_of], np.bool_),
        "logprobs": per_token([np.where(one.loss_mask, one.logprobs, 0) for one in all_of], np.float32),
        "versions": per_token([one.versions for one in all_of], np.int32),
        "advantages": per_token([row.advantages for row in rows], np.float32),
    }
    values = {
        "step": [samples.step] * len(rows),
        "epoch": [samples.epoch] * len(rows),
        "version": [samples.version] * len(rows),
        "task_id": [utf8(one.task_id) for one in all_of],
        "problem": [problem_of(one) for one in all_of],
        "group": [one.group for one in all_of],
        "sample": [row.sample for row in rows],
        "outcome": [row.outcome for row in rows],
        "reward": [one.reward for one in all_of],
        "finish_reason": [utf8(one.finish_reason) for one in all_of],
        "prompt": [utf8(one.prompt) for one in all_of],
        "completion": [utf8(one.completion) for one in all_of],
        "prompt_tokens": [one.prompt_len for one in all_of],
        "trained_tokens": [one.completion_len for one in all_of],
        "head_version": [one.head_version for one in all_of],
        "tail_version": [one.tail_version for one in all_of],
    }
    columns = [
        pa.array(values[field.name], type=field.type)
        if field.name in values
        else pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens[field.name], type=field.type.value_type))
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def problem_of(trajectory: Trajectory) -> str:
    """What is the same for all samples of a problem, in all steps."""
    if trajectory.task_id:
        return utf8(trajectory.task_id)
    prompt = trajectory.input_ids[: trajectory.prompt_len].astype("<i8").tobytes()
    return hashlib.blake2b(prompt, digest_size=8).hexdigest()


def write_file(target: Path, table: pa.Table) -> None:
    """Write a file durably and atomically: readers see all of it or nothing."""
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("wb") as file:
        pq.write_table(table, file, compression="zstd", row_group_size=ROWS_PER_GROUP)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def discard_after(directory: Path, step: int) -> None:
    """Delete the files of steps after ``step``, and partial ones."""
    for found, path in files_by_step(directory):
        if found > step:
            path.unlink()
    for partial in directory.glob(".*.partial"):
        partial.unlink()


def files_by_step(directory: Path) -> list[tuple[int, Path]]:
    found = [(step_of(path.name), path) for path in directory.glob("*.parquet")]
    return [(step, path) for step, path in found if step is not None]


def _texts(ids_T: NDArray[np.int64], token_texts: TokenTexts) -> pa.Array:
    """The text of each token; ``token_texts`` is called once with the distinct ids."""
    if not len(ids_T):
        return pa.array([], type=pa.string())
    distinct = np.flatnonzero(np.bincount(ids_T))
    position = np.zeros(distinct[-1] + 1, dtype=np.int32)
    position[distinct] = np.arange(len(distinct), dtype=np.int32)
    texts = pa.array([utf8(text) for text in token_texts(distinct.tolist())], type=pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(position[ids_T]), texts).dictionary_decode()


def utf8(text: str) -> str:
    """``text`` without unpaired surrogates, which UTF-8 cannot represent."""
    return text.encode("utf-8", "replace").decode("utf-8")
