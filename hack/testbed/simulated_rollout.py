"""A simulated asynchronous run: the real executor, gate and pacer, with servers and a trainer that only take time."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from areal_trainer.rollout.episode import Episode, Prompt
from areal_trainer.rollout.executor import Executor
from areal_trainer.rollout.pacing import Pacer
from areal_trainer.rollout.staleness import StalenessGate
from areal_trainer.rollout.workflow import GenerationEngine, RolloutWorkflow
from areal_trainer.trajectory import Trajectory
from hack.testbed.simulated_time import run_simulated

TOKENS = 20  # of an episode on servers whose speed depends on their load


@dataclass(frozen=True)
class Workload:
    """A run with a training time of 1 per step; all times are relative to it."""

    generation: float = 0.5  # mean time of an episode
    sigma: float = 0.0  # of the log-normal factor on an episode's time, whose mean is 1
    batch_size: int = 32
    max_staleness: int = 2
    slots: int | None = None  # episodes that the servers decode at a time; None for all
    shared: float = 0.0  # part of an episode's time that is proportional to the number of episodes decoded at a time
    recomputed: float = 0.0  # part of an episode's time so far that it takes again after new weights; needs ``shared``
    publish: float = 0.02  # time until the servers hold new weights
    train_sigma: float = 0.0  # of the log-normal factor on the training time
    rejected: float = 0.0  # fraction of the episodes that the workflow rejects
    steps: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """Figures of a run, without its first tenth."""

    steps_per_s: float
    staleness: float  # mean
    max_staleness: int
    waited: float  # fraction of the time that the trainer waited


class SimulatedServers(Protocol):
    """A workflow whose episodes take time on servers with weights of some version."""

    version: int

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        """One episode."""


def episode_seconds(load: Workload, chance: random.Random) -> float:
    """A random time of an episode, on servers without other episodes to share their time with."""
    return load.generation * math.exp(load.sigma * chance.gauss(0, 1) - load.sigma**2 / 2)


class _Servers(RolloutWorkflow):
    def __init__(self, load: Workload) -> None:
        self._load = load
        self._random = random.Random(load.seed)
        self._slots = asyncio.Semaphore(load.slots or 10**9)
        self._running = 0
        self.version = 0

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        seconds = episode_seconds(self._load, self._random)
        async with self._slots:
            version = self.version
            await self._decode(seconds)
        return None if self._random.random() < self._load.rejected else [trajectory_of(version)]

    async def _decode(self, seconds: float) -> None:
        """Take ``seconds``, scaled by the number of running episodes relative to a batch as far as time is shared."""
        shared, tokens = self._load.shared, TOKENS if self._load.shared else 1
        self._running += 1
        version = self.version
        for done in range(tokens):
            work = 1 + (0.0 if self.version == version else self._load.recomputed * done)
            version = self.version
            load = 1 - shared + shared * self._running / self._load.batch_size
            await asyncio.sleep(seconds / tokens * work * load)
        self._running -= 1


def trajectory_of(version: int) -> Trajectory:
    """A sample that one version has generated."""
    return Trajectory(
        input_ids=np.array([1, 2]),
        loss_mask=np.array([False, True]),
        logprobs=np.zeros(2, dtype=np.float32),
        versions=np.array([-1, version], dtype=np.int32),
        reward=0.0,
        prompt_len=1,
        finish_reason="stop",
    )


def simulate(load: Workload, *, paced: bool) -> Outcome:
    """Run ``load`` with the pacer, or with the greedy gate alone."""
    return run_simulated(run_steps(load, _Servers(load), paced=paced))


async def run_steps(
    load: Workload,
    servers: SimulatedServers,
    *,
    paced: bool,
    after_step: Callable[[int, float], None] = lambda step, waited: None,
) -> Outcome:
    """Run ``load`` on ``servers``. ``after_step`` gets the number of the step and the time waited for its batch."""
    gate = StalenessGate(batch_size=load.batch_size, max_staleness=load.max_staleness, max_concurrent=10**9)
    pacer = Pacer(batch_size=load.batch_size, max_staleness=load.max_staleness) if paced else None
    engine: Any = None
    executor = Executor(engine, gate, max_failed=0, total_batches=load.steps + load.max_staleness + 1, pacer=pacer)
    rows, chance = itertools.count(), random.Random(load.seed + 1)
    loop = asyncio.get_running_loop()
    publishing: asyncio.Task[None] | None = None
    ages: list[int] = []
    waited, began = 0.0, 0.0

    async def publish(version: int) -> None:
        await executor.hold_weights(version)
        await asyncio.sleep(load.publish)
        servers.version = version
        executor.set_version(version)

    for step in range(load.steps):
        if step == load.steps // 10:
            ages, waited, began = [], 0.0, loop.time()
        asked = loop.time()
        batch: list[Episode] | None = None
        while batch is None:
            batch = await executor.take(load.batch_size, feeding=True, update_pending=lambda: True)
            if batch is None:
                executor.feed([Prompt({"row": next(rows)}, servers) for _ in range(load.batch_size)])
        waited += loop.time() - asked
        after_step(step, loop.time() - asked)
        ages += [step - trajectory.head_version for episode in batch for trajectory in episode.trajectories]
        await asyncio.sleep(math.exp(load.train_sigma * chance.gauss(0, 1)))
        if publishing is not None:
            await publishing
        publishing = asyncio.create_task(publish(step + 1))
    elapsed = loop.time() - began
    if publishing is not None:
        await publishing
    await executor.close()
    counted = load.steps - load.steps // 10
    return Outcome(counted / elapsed, statistics.fmean(ages), max(ages), waited / elapsed)
