"""A simulated run whose number of servers changes: the real executor, gate, pacer and chooser, on a simulated clock."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from areal_operator.autoscale import Change, History, Pending, Sample, choose_servers
from areal_trainer.rollout.workflow import GenerationEngine, RolloutWorkflow
from areal_trainer.servers.idle import IdleTime
from areal_trainer.trajectory import Trajectory
from hack.testbed.simulated_rollout import Workload, episode_seconds, run_steps, trajectory_of
from hack.testbed.simulated_time import run_simulated

SLICES = 6  # of an episode; each is as fast as the load of its server allows when it starts
STEP_S = 60.0  # training time of a step in seconds, for the chooser
STARTUP = 3.0  # training times until a new server serves
REFERENCE = 8  # servers on which a batch at a time takes the workload's time of an episode


@dataclass(frozen=True)
class Fleet:
    """How many servers: as many as at the start, or between ``least`` and ``most`` as the chooser decides."""

    start: int
    least: int
    most: int

    @classmethod
    def fixed(cls, number: int) -> Fleet:
        """A number that does not change."""
        return cls(number, number, number)


@dataclass(frozen=True)
class ElasticOutcome:
    """Figures of a whole run, in training times of a step."""

    seconds: float
    server_seconds: float  # of all servers from their start to their end
    changes: tuple[Change, ...]
    numbers: tuple[int, ...]  # of servers, after each step


@dataclass(eq=False)
class _Server:
    idle: IdleTime
    serves: bool
    load: int = 0
    removed: bool = False


class _Servers(RolloutWorkflow):
    """Servers that share their speed among their episodes.

    ``growth``: factor on the lengths of episodes from the first step to the last.
    """

    def __init__(self, load: Workload, number: int, *, growth: float) -> None:
        self._load, self._growth = load, growth
        self._random = random.Random(load.seed)
        self._loop = asyncio.get_running_loop()
        self._servers = [_Server(IdleTime(self._loop.time), serves=True) for _ in range(number)]
        self._draining: list[_Server] = []
        self._starts: set[asyncio.Task[None]] = set()
        self._counted_at = self._loop.time()
        self.server_seconds = 0.0
        self.version = 0

    @property
    def all_serve(self) -> bool:
        return all(server.serves for server in self._servers)

    def count(self) -> None:
        """Count the servers' time until now."""
        now = self._loop.time()
        self._draining = [server for server in self._draining if server.load]
        self.server_seconds += (len(self._servers) + len(self._draining)) * (now - self._counted_at)
        self._counted_at = now

    def scale(self, number: int) -> None:
        self.count()
        removed, self._servers = self._servers[number:], self._servers[:number]
        for server in removed:
            server.removed = True
        self._draining += removed
        for _ in range(number - len(self._servers)):
            server = _Server(IdleTime(self._loop.time), serves=False)
            self._servers.append(server)
            task = self._loop.create_task(self._start(server))
            self._starts.add(task)
            task.add_done_callback(self._starts.discard)

    async def _start(self, server: _Server) -> None:
        await asyncio.sleep(STARTUP)
        server.idle.advance(serving=False, busy=False)
        server.serves = True

    def take_idle_share(self) -> float:
        for server in self._servers:
            server.idle.advance(serving=server.serves, busy=server.load > 0)
        times = [server.idle.take() for server in self._servers]
        return sum(idle for _, idle in times) / (sum(serving for serving, _ in times) or 1.0)

    def _add(self, server: _Server, episodes: int) -> None:
        server.idle.advance(serving=server.serves, busy=server.load > 0)
        server.load += episodes

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        load, version = self._load, self.version
        grown = self._growth ** (version / load.steps)
        seconds = episode_seconds(load, self._random) * grown
        server = min((one for one in self._servers if one.serves), key=lambda one: one.load)
        self._add(server, 1)
        batch = load.batch_size / REFERENCE  # episodes on each server of the reference
        for _ in range(SLICES):
            await asyncio.sleep(seconds / SLICES * (1 - load.shared + load.shared * server.load / batch))
        self._add(server, -1)
        return [trajectory_of(version)]


def simulate_elastic(load: Workload, fleet: Fleet, *, growth: float = 1.0) -> ElasticOutcome:
    """Run ``load`` on a changing number of servers."""
    return run_simulated(_run(load, fleet, growth=growth))


async def _run(load: Workload, fleet: Fleet, *, growth: float) -> ElasticOutcome:
    servers = _Servers(load, fleet.start, growth=growth)
    loop = asyncio.get_running_loop()
    history, number, began = History(0.0), fleet.start, loop.time()
    changes: list[Change] = []
    numbers: list[int] = []

    def after_step(step: int, waited: float) -> None:
        nonlocal history, number, began
        now, idle = loop.time(), servers.take_idle_share()
        share, began = waited / (now - began or 1.0), now
        sample = Sample(min(1.0, share), idle) if servers.all_serve else None
        history = history.reported(step + 1, sample, servers=number)
        at_s = now * STEP_S
        choice = choose_servers(history, at_s, servers=number, least=fleet.least, most=fleet.most, pending=Pending())
        if choice is not None:
            history = history.changed(choice, before=number, at_s=at_s)
            changes.append(history.changes[-1])
            number = choice.servers
            servers.scale(number)
        numbers.append(number)

    await run_steps(load, servers, paced=True, after_step=after_step)
    servers.count()
    return ElasticOutcome(loop.time(), servers.server_seconds, tuple(changes), tuple(numbers))
