"""Runs ``grpo run`` on the tiny example and reads its statistics."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from areal_api import names
from benchmarks.scripted import REPOSITORY

TINY = REPOSITORY / "examples" / "tiny"
LAST_STEPS = 5  # the final reward is their mean


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    seconds: list[float]  # of each step
    final_reward: float  # mean over the training samples of the last steps
    held_out: float | None = None  # greedy, on the validation split, after the last step

    @property
    def rate(self) -> float:
        """Steps per second: 1 ÷ the mean seconds of all steps but the first."""
        return 1 / statistics.fmean(self.seconds[1:])

    @property
    def first_rate(self) -> float:
        """Steps per second of the first step."""
        return 1 / self.seconds[0]

    @property
    def total_s(self) -> float:
        """Seconds from the start of the first step to the end of the last."""
        return sum(self.seconds)


def grpo_run(path: Path, *overrides: str) -> Run:
    """Run the tiny example with ``overrides`` in ``path``, which is <fileroot>/<experiment>/<trial>."""
    argv = [str(Path(sys.executable).with_name("grpo")), "run", str(TINY / "experiment.yaml"), *overrides]
    argv += [f"config.cluster.fileroot={path.parents[1]}"]
    argv += [f"config.experiment_name={path.parent.name}", f"config.trial_name={path.name}"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exited with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    lines = [json.loads(line) for line in names.stats_file(path).read_text().splitlines()]
    rewards = [line["task_reward/avg"] for line in lines[-LAST_STEPS:]]
    seconds = [line["seconds_per_step"] for line in lines]
    return Run(seconds, statistics.mean(rewards), lines[-1].get("eval-rollout/reward"))
