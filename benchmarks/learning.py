"""Asynchronous against synchronous training of the tiny example to its end: held-out reward and time of both."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.measure import Comparison
from benchmarks.runs import Run, grpo_run

SEEDS = 2
STEPS = 60


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Steps a second. A round is a seed: an asynchronous run with η = 2 and a synchronous one, as in the example."""
    steps, seeds = (3, 1) if small else (STEPS, min(rounds, SEEDS))
    with tempfile.TemporaryDirectory() as folder:
        pairs = [pair(Path(folder), seed, steps) for seed in range(1, seeds + 1)]
    return [comparison(pairs, steps)]


def pair(root: Path, seed: int, steps: int) -> tuple[Run, Run]:
    """The asynchronous and the synchronous run of one seed."""
    overrides = (f"config.seed={seed}", f"config.total_train_steps={steps}")
    return (
        grpo_run(root / "tiny" / f"async{seed}", *overrides, "config.async_training=true"),
        grpo_run(root / "tiny" / f"sync{seed}", *overrides, "config.async_training=false"),
    )


def comparison(pairs: list[tuple[Run, Run]], steps: int) -> Comparison:
    """Of the runs of all seeds."""
    return Comparison(
        "learning",
        f"{steps} steps of examples/tiny with its evaluations, SGLang and trainer on a thread each; a round is a seed",
        "steps/s",
        [steps / asynchronous.total_s for asynchronous, _ in pairs],
        "the same, synchronous",
        [steps / synchronous.total_s for _, synchronous in pairs],
        notes=[
            f"seed {seed}: held-out reward {_summary(asynchronous)} asynchronous, {_summary(synchronous)} synchronous"
            for seed, (asynchronous, synchronous) in enumerate(pairs, 1)
        ],
    )


def _summary(run: Run) -> str:
    return f"{run.held_out:.3f} in {run.total_s:.0f} s"
