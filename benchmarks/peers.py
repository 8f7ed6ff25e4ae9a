"""The peers' task: a Qwen3 of 0.8 M parameters, 32 prompts × 8 samples of at most 20 tokens, on two cores.

``grpo run`` with the real SGLang server, asynchronous (η = 2, decoupled loss with a forward pass of its own) and
synchronous; its parts alone; and with ``--trl`` TRL's GRPOTrainer on the same task, which generates in the process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Comparison
from benchmarks.parts import Parts, measure_parts
from benchmarks.scripted import REPOSITORY
from benchmarks.trl_peer import trl_run

TINY = REPOSITORY / "examples" / "tiny"
TASK = (
    "config.valid_dataset=null",
    "config.gconfig.n_samples=8",
    "config.gconfig.max_new_tokens=20",
    "config.train_dataset.batch_size=32",
    "config.rollout.max_head_offpolicyness=2",
    "config.rollout.max_concurrent_rollouts=32",
    "config.actor.dtype=float32",
    "config.actor.ppo_n_minibatches=1",
    "config.actor.recompute_logprob=true",
    "config.actor.use_decoupled_loss=true",
)
AREAL = "AReaL 1.0.4, published for a like machine and not measured here: 5.1–5.6 s/step, first step 23–26 s"
LAST_STEPS = 5  # of which the final reward is the mean


@dataclass(frozen=True)
class Run:
    """What a training run's statistics say."""

    seconds: list[float]  # of each step
    final_reward: float

    @classmethod
    def of(cls, lines: list[dict[str, float]]) -> Run:
        """From the lines of stats.jsonl."""
        rewards = [line["task_reward/avg"] for line in lines[-LAST_STEPS:]]
        return cls([line["seconds_per_step"] for line in lines], statistics.mean(rewards))

    @property
    def rate(self) -> float:
        """Steps a second: one ÷ the median of the steps after the first."""
        return 1 / statistics.median(self.seconds[1:])

    @property
    def first_rate(self) -> float:
        """The same of the first step."""
        return 1 / self.seconds[0]


def run(*, small: bool, rounds: int, trl: bool = False) -> list[Comparison]:
    """Steps a second. A round is an asynchronous run, a synchronous run, the parts alone, and TRL's run."""
    steps, rounds = (3, 1) if small else (25, min(rounds, 3))
    asynchronous: list[Run] = []
    synchronous: list[Run] = []
    parts: list[Parts] = []
    peers: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(rounds):
            path = root / "tiny" / f"async{number}"
            asynchronous.append(_grpo_run(path, steps, "config.async_training=true"))
            synchronous.append(_grpo_run(root / "tiny" / f"sync{number}", steps, "config.async_training=false"))
            parts.append(measure_parts(path, batches=2 if small else 8))
            if trl:
                seconds, rewards = trl_run(TINY / "model", TINY / "data" / "train.jsonl", steps=steps, work=root)
                peers.append(Run(seconds, statistics.mean(rewards[-LAST_STEPS:])))
    work = f"{steps} steps of 32 × 8 samples, 0.8 M parameters, SGLang and trainer on one thread each"
    return _comparisons(work, asynchronous, synchronous, parts, peers)


def _comparisons(
    work: str, asynchronous: list[Run], synchronous: list[Run], parts: list[Parts], peers: list[Run]
) -> list[Comparison]:
    ours = [run.rate for run in asynchronous]
    rewards = f"final reward {_mean_reward(asynchronous)} asynchronous, {_mean_reward(synchronous)} synchronous"
    alone = "; ".join(part.text() for part in parts)
    results = [
        Comparison(
            "peers",
            work,
            "steps/s",
            ours,
            "the same, synchronous",
            [run.rate for run in synchronous],
            notes=[rewards, AREAL],
        ),
        Comparison(
            "peers, overlap",
            work,
            "steps/s",
            ours,
            "the slower of its parts, alone",
            [1 / max(part.generation_s, part.training_s) for part in parts],
            goal=1 / 1.15,
            notes=[f"seconds alone: {alone}"],
        ),
        Comparison(
            "peers, first step",
            work,
            "steps/s",
            [run.first_rate for run in asynchronous],
            "a later step",
            ours,
            goal=1 / 3,
        ),
    ]
    if peers:
        theirs = [run.rate for run in peers]
        note = f"final reward {_mean_reward(asynchronous)} here, {_mean_reward(peers)} there"
        name = f"TRL, {os.cpu_count()} threads, in the process"
        results.append(Comparison("peers, TRL", work, "steps/s", ours, name, theirs, goal=1.0, notes=[note]))
    return results


def _mean_reward(runs: list[Run]) -> str:
    return f"{statistics.mean(run.final_reward for run in runs):.2f}"


def _grpo_run(path: Path, steps: int, *overrides: str) -> Run:
    """Run it in ``path`` and read its statistics."""
    argv = [str(Path(sys.executable).with_name("grpo")), "run", str(TINY / "experiment.yaml"), *TASK, *overrides]
    argv += [f"config.total_train_steps={steps}", f"config.cluster.fileroot={path.parents[1]}"]
    argv += [f"config.experiment_name={path.parent.name}", f"config.trial_name={path.name}"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return Run.of([json.loads(line) for line in (path / "stats.jsonl").read_text().splitlines()])
