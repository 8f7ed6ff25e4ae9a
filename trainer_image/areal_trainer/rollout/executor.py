"""Episodes: started when the staleness gate lets them, finished in any order, handed out oldest first.

Which episodes make a batch: those that would be too old for a later one, then the oldest finished. With η = 0 that is
all that were started, in the order of their prompts, so a synchronous run repeats itself bit by bit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from areal_trainer.rollout.staleness import StalenessGate
from areal_trainer.rollout.workflow import GenerationEngine, RolloutWorkflow
from areal_trainer.servers.fleet import NoServerError
from areal_trainer.trajectory import Trajectory

logger = logging.getLogger(__name__)

DEFAULT_CONCURRENCY = 256  # episodes of an evaluation at a time, when rollout.max_concurrent_rollouts is null
Accept = Callable[[list[Trajectory]], bool]


class RolloutError(Exception):
    """Rollout cannot go on: too many episodes failed in a row, or nothing could ever finish."""


class Interrupted(Exception):
    """The run was asked to end: nobody waits for the next batch any more."""


@dataclass
class Prompt:
    """A row that waits for its episode."""

    data: dict[str, Any]
    workflow: RolloutWorkflow
    accept: Accept | None = None


@dataclass
class Episode:
    """A prompt under way, or finished and waiting for the trainer."""

    number: int  # in the order of starting
    version: int  # that the servers held when it was started: none of its tokens is older
    prompt: Prompt
    trajectories: list[Trajectory] = field(default_factory=list)


@dataclass
class Counters:
    """Episodes since the last batch."""

    accepted: int = 0
    rejected: int = 0
    failed: int = 0


async def run_prompt(engine: GenerationEngine, prompt: Prompt, number: int) -> list[Trajectory]:
    """The trajectories of one episode, in group ``number``; none when it is rejected."""
    result = await prompt.workflow.arun_episode(engine, prompt.data)
    if not result:
        return []
    if not isinstance(result, list) or not all(isinstance(item, Trajectory) for item in result):
        raise TypeError(
            f"{type(prompt.workflow).__name__}.arun_episode returned {result!r:.200}; "
            "return a list of Trajectory, or None to reject the episode"
        )
    if prompt.accept is not None and not prompt.accept(result):
        return []
    return [trajectory.in_group(number) for trajectory in result]


async def run_prompts(
    engine: GenerationEngine, prompts: list[Prompt], *, max_concurrent: int | None, max_failed: int
) -> list[list[Trajectory]]:
    """An episode for each prompt, without any gate, in the order of the prompts; empty where it was rejected or failed.

    Raises ``RolloutError`` with the last error after more than ``max_failed`` failures.
    """
    slots = asyncio.Semaphore(max_concurrent or DEFAULT_CONCURRENCY)
    failures: list[Exception] = []

    async def run(number: int, prompt: Prompt) -> list[Trajectory]:
        async with slots:
            try:
                return await run_prompt(engine, prompt, number)
            except Exception as error:  # a workflow is anybody's code
                logger.warning("episode failed on %.300r", prompt.data, exc_info=error)
                failures.append(error)
                if isinstance(error, NoServerError):
                    raise
                if len(failures) > max_failed:
                    raise RolloutError(
                        f"{len(failures)} episodes failed (rollout.max_failed_episodes is {max_failed}), "
                        f"the last with {type(error).__name__}: {error}"
                    ) from error
                return []

    tasks = [asyncio.create_task(run(number, prompt)) for number, prompt in enumerate(prompts)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Executor:
    """Runs episodes. Lives on the engine's event loop; every method is called there."""

    def __init__(
        self,
        engine: GenerationEngine,
        gate: StalenessGate,
        *,
        max_failed: int,
        queue_size: int | None = None,
        total_batches: int | None = None,
    ) -> None:
        """``queue_size``: most finished episodes that wait. ``total_batches``: nothing is generated beyond them."""
        if queue_size is not None and queue_size < gate.batch_size:
            raise ValueError(
                f"rollout.queue_size is {queue_size}, below a batch of {gate.batch_size} episodes; "
                "raise it or leave it out"
            )
        self.gate = gate
        self.counters = Counters()
        self._engine = engine
        self._max_failed = max_failed
        self._queue_size = queue_size
        self._total_batches = total_batches
        self._prompts: deque[Prompt] = deque()
        self._running: dict[int, Episode] = {}
        self._finished: dict[int, Episode] = {}
        self._tasks: dict[asyncio.Task[bool], Episode] = {}
        self._next_number = 0
        self._consumed = 0
        self._failed_in_a_row = 0
        self._error: Exception | None = None
        self._paused = False
        self._awaited = 0  # episodes that the trainer waits for
        self._changed = asyncio.Event()

    @property
    def consumed(self) -> int:
        """Episodes that the trainer has taken, those before a resume included."""
        return self._consumed

    @property
    def step(self) -> int:
        """Version of the weights that the next batch trains."""
        return self._consumed // self.gate.batch_size

    # Starting

    def feed(self, prompts: Iterable[Prompt]) -> None:
        """Put prompts at the end of the queue."""
        self._prompts.extend(prompts)
        self._start_allowed()

    def pause(self) -> None:
        """Start no further episode."""
        self._paused = True

    def resume(self) -> None:
        """Start episodes again."""
        self._paused = False
        self._start_allowed()

    def set_version(self, version: int) -> None:
        """The servers hold ``version``: the gate opens for another batch."""
        self.gate.set_version(version)
        self._start_allowed()
        self._changed.set()

    def prompts_wanted(self) -> int:
        """Prompts that are missing for what the gate allows now and, in asynchronous training, at the next version.

        Episodes of the next version then start at the moment the servers hold it, not when the trainer asks again.
        """
        ahead = self.gate.batch_size if self.gate.max_staleness > 0 else 0
        return self._bounded(self.gate.fresh_capacity() + ahead) - len(self._prompts)

    def _bounded(self, capacity: int) -> int:
        """``capacity`` within the end of training and the bound of finished episodes."""
        if self._total_batches is not None:
            total = self._total_batches * self.gate.batch_size
            capacity = min(capacity, total - self.gate.accepted - self.gate.running)
        if self._queue_size is not None:
            capacity = min(capacity, self._queue_size - len(self._finished) - len(self._running))
        return capacity

    def _start_allowed(self) -> None:
        while self._prompts and not self._paused and self._error is None and self._bounded(self.gate.capacity()) > 0:
            episode = Episode(self._next_number, self.gate.version, self._prompts.popleft())
            self._next_number += 1
            self.gate.started()
            self._running[episode.number] = episode
            task = asyncio.get_running_loop().create_task(self._run(episode))
            self._tasks[task] = episode
            task.add_done_callback(self._ended)

    async def _run(self, episode: Episode) -> bool:
        """Whether the episode is accepted; its trajectories are kept then."""
        prompt = episode.prompt
        episode.trajectories = await run_prompt(self._engine, prompt, episode.number)
        return bool(episode.trajectories)

    # Finishing

    def _ended(self, task: asyncio.Task[bool]) -> None:
        episode = self._tasks.pop(task)
        del self._running[episode.number]
        error = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
        accepted = error is None and task.result()
        self.gate.finished(accepted=accepted)
        if error is not None:
            self._failed(episode, error)
        else:
            self._failed_in_a_row = 0
            self.counters.accepted += accepted
            self.counters.rejected += not accepted
            if accepted:
                self._finished[episode.number] = episode
        self._start_allowed()
        # An accepted episode is nothing to look at before a batch may be whole.
        if not accepted or len(self._finished) >= self._awaited or not self._running:
            self._changed.set()

    def _failed(self, episode: Episode, error: BaseException) -> None:
        self.counters.failed += 1
        self._failed_in_a_row += 1
        row = f"{episode.prompt.data!r:.300}"
        logger.warning("episode %d failed on %s", episode.number, row, exc_info=error)
        if self._error is not None:
            return
        if isinstance(error, NoServerError):
            self._error = error
        elif self._failed_in_a_row > self._max_failed:
            self._error = RolloutError(
                f"{self._failed_in_a_row} episodes in a row failed, rollout.max_failed_episodes is {self._max_failed}; "
                f"the last with {type(error).__name__}: {error}; its row was {row}"
            )
            self._error.__cause__ = error

    # Handing out

    async def take(self, count: int, *, feeding: bool, patient: Callable[[], bool]) -> list[Episode] | None:
        """The next ``count`` accepted episodes in the order of prompts; with ``feeding`` None when prompts are wanted.

        Raises ``RolloutError`` when nothing can ever finish; ``patient`` says whether the version is about to change.
        """
        self._awaited = count
        while True:
            if self._error is not None:
                raise self._error
            if feeding and self.prompts_wanted() > 0:
                return None
            if self._complete(count):
                return self._consume(count)
            self._check_progress(count, patient())
            self._changed.clear()
            await self._changed.wait()

    def account(self) -> tuple[Counters, int]:
        """Counters since the last call, and the step of the batch that was taken last."""
        counters, self.counters = self.counters, Counters()
        return counters, (self._consumed - 1) // self.gate.batch_size

    def poke(self) -> None:
        """Let ``take`` look again."""
        self._changed.set()

    def _complete(self, count: int) -> bool:
        if len(self._finished) < count:
            return False
        # Those that are left, running ones too, are consumed oldest first, a batch a step. Where one would get too old
        # for its batch, an older one has to be in this batch, and is waited for.
        left = {episode.number: episode.version for episode in (*self._running.values(), *self._finished.values())}
        for number in sorted(self._finished)[:count]:
            del left[number]
        return all(
            self.step + 1 + place // self.gate.batch_size - left[number] <= self.gate.max_staleness
            for place, number in enumerate(sorted(left))
        )

    def _consume(self, count: int) -> list[Episode]:
        batch = [self._finished.pop(number) for number in sorted(self._finished)[:count]]
        step = self.step
        for episode in batch:
            assert step - episode.version <= self.gate.max_staleness, (
                f"episode {episode.number} was started at v{episode.version} and is consumed at step {step}"
            )
        self._consumed += count
        self._start_allowed()
        return batch

    def consume_elsewhere(self, count: int) -> None:
        """The trainer took ``count`` episodes that did not pass the gate: they were made for it while it waited."""
        self._consumed += count
        self.gate.accepted += count

    def _check_progress(self, count: int, patient: bool) -> None:
        if self._running or patient:
            return
        held = f"{len(self._finished)} of {count} episodes are finished and none is running"
        if self._paused:
            raise RolloutError(f"{held}, but the engine is paused; call resume() first")
        if self._bounded(self.gate.capacity()) <= 0:
            raise RolloutError(
                f"{held}, and none may start: version {self.gate.version}, accepted {self.gate.accepted}, "
                f"max_head_offpolicyness {self.gate.max_staleness}, batch {self.gate.batch_size}; "
                "publish new weights with update_weights() after each batch"
            )
        raise RolloutError(f"{held}, and no prompt is left; submit more than {count} episodes")

    # Recovery

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: rows that were read and not consumed, oldest first.

        Episodes under way, and finished ones that no batch has taken, are their rows: they are generated again by the
        weights that the resumed run starts with, which the gate counts on (accepted = version · batch).
        """
        unconsumed = [*self._running.values(), *self._finished.values()]
        rows = [episode.prompt.data for episode in sorted(unconsumed, key=lambda episode: episode.number)]
        rows += [prompt.data for prompt in self._prompts]
        first = min((episode.number for episode in unconsumed), default=self._next_number)
        return {"consumed": self._consumed, "next_number": first, "rows": rows}

    def load_state_dict(self, state: dict[str, Any], *, version: int) -> list[dict[str, Any]]:
        """Resume at ``version``. Returns the rows that come before the loader's next."""
        self.start_at(version)
        self._next_number = state["next_number"]
        return list(state["rows"])

    def start_at(self, version: int) -> None:
        """Begin with the step that trains the weights ``version``, with nothing under way."""
        assert not self._running, "episodes are running while the version is set back"
        self.gate.resume(version)
        self._consumed = version * self.gate.batch_size
        self._finished.clear()
        self._prompts.clear()

    def stop(self, error: Exception) -> None:
        """Start nothing more; whoever waits for a batch gets ``error``."""
        self._error = self._error or error
        self._changed.set()

    async def close(self) -> None:
        """Cancel all episodes."""
        self.stop(RolloutError("the engine is destroyed"))
        tasks = list(self._tasks)
        for task in tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
