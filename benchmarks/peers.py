"""The peers' task: a Qwen3 of 0.8 M parameters, 32 prompts × 8 samples of at most 20 tokens, on two cores.

``grpo run`` with the real SGLang server, asynchronous (η = 2) and synchronous; generation and training alone; and other
trainers on the same task with the same settings, those of the benchmark ``learning``: TRL's GRPOTrainer, which
generates in the process, and AReaL, asynchronous with η = 2 and the same SGLang server.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning_results import Record
from benchmarks.learning_runs import run_directory, task_files, train
from benchmarks.measure import Comparison
from benchmarks.parts import Parts, measure_parts
from benchmarks.peer import PeerTask
from benchmarks.peer_trainers import PEER_TRAINERS

GOALS = {"trl": 1.5, "areal": 8.0}  # steps per second relative to each peer's
ASYNCHRONOUS, SYNCHRONOUS = "eta2", "sync"


def run(*, small: bool, rounds: int, peers: Sequence[str] = ()) -> list[Comparison]:
    """Compare steps per second. A round is an asynchronous run, a synchronous run, the parts alone, and a run per peer.

    Every round has another seed. Raises ``PeerError`` if a peer cannot be installed or run.
    """
    steps, rounds = (3, 1) if small else (25, min(rounds, 3))
    ours: dict[str, list[Record]] = {ASYNCHRONOUS: [], SYNCHRONOUS: []}
    parts: list[Parts] = []
    theirs: dict[str, list[Record]] = {name: [] for name in peers}
    with tempfile.TemporaryDirectory() as folder:
        task = task_files("tiny", Path(folder))
        for seed in range(1, rounds + 1):
            root = Path(folder) / f"round{seed}"
            root.mkdir()
            for mode, records in ours.items():
                records.append(train(task, "defaults", mode, root, seed=seed, steps=steps))
            parts.append(measure_parts(run_directory(task, ASYNCHRONOUS, root), batches=2 if small else 8))
            for name, records in theirs.items():
                work = root / name
                work.mkdir()
                records.append(PEER_TRAINERS[name](PeerTask(task.model, task.data, steps=steps, seed=seed), work))
    what = f"{steps} steps of 32 × 8 samples, 0.8 M parameters, SGLang and trainer with one thread each"
    return _comparisons(what, ours[ASYNCHRONOUS], ours[SYNCHRONOUS], parts, theirs)


def _comparisons(
    work: str,
    asynchronous: list[Record],
    synchronous: list[Record],
    parts: list[Parts],
    peers: dict[str, list[Record]],
) -> list[Comparison]:
    ours = _rates(asynchronous)
    rewards = f"final reward {_mean_reward(asynchronous)} asynchronous, {_mean_reward(synchronous)} synchronous"
    alone = "; ".join(part.text() for part in parts)
    results = [
        Comparison(
            "peers",
            work,
            "steps/s",
            ours,
            "the same, synchronous",
            _rates(synchronous),
            notes=[rewards],
        ),
        Comparison(
            "peers, overlap",
            work,
            "steps/s",
            ours,
            "the slower part, alone",
            [1 / part.slower_s for part in parts],
            goal=1 / 1.05,
            notes=[f"seconds alone: {alone}"],
        ),
        Comparison(
            "peers, first step",
            work,
            "steps/s",
            [1 / record.seconds[0] for record in asynchronous],
            "a later step",
            ours,
            goal=1 / 3,
        ),
    ]
    for name, runs in peers.items():
        note = f"final reward {_mean_reward(asynchronous)} here, {_mean_reward(runs)} there"
        rates = _rates(runs)
        results.append(Comparison(f"peers, {name}", work, "steps/s", ours, name, rates, goal=GOALS[name], notes=[note]))
    return results


def _rates(records: list[Record]) -> list[float]:
    """Steps per second of each run: 1 ÷ the mean seconds of all steps but the first."""
    return [1 / record.step_s for record in records]


def _mean_reward(records: list[Record]) -> str:
    return f"{statistics.mean(record.final for record in records):.2f}"
