"""The peers' task: a Qwen3 of 0.8 M parameters, 32 prompts × 8 samples of at most 20 tokens, on two cores.

``grpo run`` with the real SGLang server, asynchronous (η = 2, decoupled loss, recomputed log-probs) and synchronous;
generation and training alone; and other trainers on the same task: TRL's GRPOTrainer, which generates in the process,
and AReaL, asynchronous with η = 2 and the same SGLang server.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Comparison
from benchmarks.parts import Parts, measure_parts
from benchmarks.peer import PeerTask
from benchmarks.peer_trainers import PEER_TRAINERS
from benchmarks.runs import LAST_STEPS, TINY, Run, grpo_run

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

GOALS = {"trl": 1.5, "areal": 8.0}  # steps per second relative to each peer's


def run(*, small: bool, rounds: int, peers: Sequence[str] = ()) -> list[Comparison]:
    """Compare steps per second. A round is an asynchronous run, a synchronous run, the parts alone, and a run per peer.

    Raises ``PeerError`` if a peer cannot be installed or run.
    """
    steps, rounds = (3, 1) if small else (25, min(rounds, 3))
    asynchronous: list[Run] = []
    synchronous: list[Run] = []
    parts: list[Parts] = []
    theirs: dict[str, list[Run]] = {name: [] for name in peers}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(rounds):
            path = root / "tiny" / f"async{number}"
            task = (*TASK, f"config.total_train_steps={steps}")
            asynchronous.append(grpo_run(path, *task, "config.async_training=true"))
            synchronous.append(grpo_run(root / "tiny" / f"sync{number}", *task, "config.async_training=false"))
            parts.append(measure_parts(path, batches=2 if small else 8))
            for name in peers:
                work = root / f"{name}{number}"
                work.mkdir()
                record = PEER_TRAINERS[name](_problem(steps), work)
                theirs[name].append(Run(record.seconds, statistics.mean(record.rewards[-LAST_STEPS:])))
    what = f"{steps} steps of 32 × 8 samples, 0.8 M parameters, SGLang and trainer with one thread each"
    return _comparisons(what, asynchronous, synchronous, parts, theirs)


def _problem(steps: int) -> PeerTask:
    return PeerTask(
        *(TINY / "model", TINY / "data" / "train.jsonl"),
        steps=steps,
        learning_rate=3e-4,
        warmup_steps=steps // 10,
        epsilon=0.4,
    )


def _comparisons(
    work: str,
    asynchronous: list[Run],
    synchronous: list[Run],
    parts: list[Parts],
    peers: dict[str, list[Run]],
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
            notes=[rewards],
        ),
        Comparison(
            "peers, overlap",
            work,
            "steps/s",
            ours,
            "the slower part, alone",
            [1 / max(part.generation_s, part.training_s) for part in parts],
            goal=1 / 1.05,
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
    for name, runs in peers.items():
        note = f"final reward {_mean_reward(asynchronous)} here, {_mean_reward(runs)} there"
        rates = [run.rate for run in runs]
        results.append(Comparison(f"peers, {name}", work, "steps/s", ours, name, rates, goal=GOALS[name], notes=[note]))
    return results


def _mean_reward(runs: list[Run]) -> str:
    return f"{statistics.mean(run.final_reward for run in runs):.2f}"
