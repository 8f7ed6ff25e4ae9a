"""Writing the samples of a step (``rollout.dump_to_file``): time in the training loop, in the background, and size."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from areal_trainer.rollout.dump import RolloutDump, StepSamples
from areal_trainer.trajectory import Trajectory
from benchmarks.measure import Comparison, by_turns

VOCABULARY = 32_000
PROMPT_TOKENS = 128


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Tokens per second of a step's file, ours and as lines of JSON."""
    problems, samples, tokens = (2, 2, 64) if small else (64, 8, 1_024)
    step = step_samples(problems, samples, tokens)
    total = sum(map(len, step.trained))
    loop_ms: list[float] = []
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        dump = RolloutDump(Path(folder) / "rollouts", max_bytes=2**40, token_texts=texts)

        def ours() -> float:
            started = time.perf_counter()
            dump.add(step)
            loop_ms.append(1e3 * (time.perf_counter() - started))
            dump.flush()
            return total / (time.perf_counter() - started) / 1e6

        def baseline() -> float:
            started = time.perf_counter()
            write_lines(Path(folder) / "step.jsonl", rows)
            return total / (time.perf_counter() - started) / 1e6

        dump.add(step)
        dump.flush()
        file = Path(folder) / "rollouts" / "step1.parquet"
        rows = pq.read_table(file).to_pylist()
        result = by_turns(ours, baseline, rounds=rounds)
        dump.close()
        sizes = {"Parquet": file.stat().st_size, "JSON lines": (Path(folder) / "step.jsonl").stat().st_size}
    written_ms = 1e3 * total / statistics.median(result[0]) / 1e6
    notes = [
        f"{statistics.median(loop_ms):.1f} ms in the training loop",
        f"{written_ms:.0f} ms until the file of {total:,} tokens is on disk, in the background",
        *(f"{name}: {size / total:.1f} MB per million tokens" for name, size in sizes.items()),
    ]
    work = f"{problems} problems with {samples} samples of {PROMPT_TOKENS} + {tokens} tokens, written and synced"
    lines = "the same rows as JSON lines"
    return [Comparison("dump", work, "million tokens/s", result[0], lines, result[1], notes=notes)]


def step_samples(problems: int, samples: int, tokens: int) -> StepSamples:
    """A step whose token ids follow Zipf's law, as those of text do."""
    draw = np.random.default_rng(1)
    length = PROMPT_TOKENS + tokens
    trained, advantages = [], []
    for problem in range(problems):
        prompt = ids_of(draw, PROMPT_TOKENS)
        for _ in range(samples):
            mask = np.arange(length) >= PROMPT_TOKENS
            ids = np.concatenate([prompt, ids_of(draw, tokens)])
            trained.append(
                Trajectory(
                    input_ids=ids,
                    loss_mask=mask,
                    logprobs=np.where(mask, -draw.exponential(0.5, length), 0).astype(np.float32),
                    versions=np.where(mask, 7, -1).astype(np.int32),
                    reward=float(draw.integers(2)),
                    prompt_len=PROMPT_TOKENS,
                    finish_reason="stop",
                    prompt="".join(texts(prompt.tolist())),
                    completion="".join(texts(ids[PROMPT_TOKENS:].tolist())),
                    task_id=f"train/{problem}",
                    group=problem,
                )
            )
            advantages.append(np.where(mask, draw.normal(), 0).astype(np.float32))
    return StepSamples(1, epoch=1, version=7, trained=trained, advantages=advantages)


def ids_of(draw: np.random.Generator, count: int) -> np.ndarray:
    """Token ids by Zipf's law."""
    return np.minimum(draw.zipf(1.2, count), VOCABULARY - 1).astype(np.int64)


def texts(ids: Sequence[int]) -> list[str]:
    """A word for each token id."""
    return [f" w{number:x}" for number in ids]


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write the rows as lines of JSON, durably."""
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
