"""Runs episodes: starts them when the staleness gate allows, and hands out finished ones in batches, oldest first.

A batch consists of the episodes that would be too old for a later one, then of the oldest finished ones. With η = 0
these are all that were started, in the order of their prompts, so a synchronous run is reproducible bit for bit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from areal_trainer.rollout.episode import Episode, Interrupted, Prompt, RolloutError, run_prompt
from areal_trainer.rollout.pacing import Pacer
from areal_trainer.rollout.staleness import StalenessGate
from areal_trainer.rollout.workflow import GenerationEngine
from areal_trainer.servers.fleet import NoServerError
from areal_trainer.tracing import span
from areal_trainer.trajectory import Trajectory

logger = logging.getLogger(__name__)

__all__ = ["Counters", "Executor", "Interrupted", "RolloutError"]


@dataclass
class Counters:
    """Episodes since the last batch."""

    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    reserve: int = 0  # episodes to be generated ahead, beyond one batch
    seconds: list[float] = field(default_factory=list)  # duration of each accepted episode


class Executor:
    """Runs episodes. Use only on the engine's event loop."""

    def __init__(
        self,
        engine: GenerationEngine,
        gate: StalenessGate,
        *,
        max_failed: int,
        max_rejected_batches: int | None = None,
        queue_size: int | None = None,
        total_batches: int | None = None,
        max_rejected_kept: int = 0,
        pacer: Pacer | None = None,
    ) -> None:
        """``queue_size``: most episodes that run or wait. ``total_batches``: nothing is generated for later ones.
        ``max_rejected_batches``: batches' worth of rejected episodes for one batch before ``take`` raises.

        ``max_rejected_kept``: rejected episodes whose samples are kept for ``take_rejected``.
        ``pacer``: starts no more episodes than it chooses; without one, as many as the gate allows.
        """
        if queue_size is not None and queue_size < gate.batch_size:
            raise ValueError(
                f"rollout.queue_size is {queue_size}, below a batch of {gate.batch_size} episodes; raise it or omit it"
            )
        self.gate = gate
        self.counters = Counters()
        self._engine = engine
        self._max_failed = max_failed
        self._max_rejected = None if max_rejected_batches is None else max_rejected_batches * gate.batch_size
        self._rejected_since_batch = 0
        self._queue_size = queue_size
        self._total_batches = total_batches
        self._max_rejected_kept = max_rejected_kept
        self._rejected_kept: list[list[Trajectory]] = []
        self._pacer = pacer
        self._prompts: deque[Prompt] = deque()
        self._running: dict[int, Episode] = {}
        self._finished: dict[int, Episode] = {}
        self._tasks: dict[asyncio.Task[bool], Episode] = {}
        self._next_number = 0
        self._consumed = 0
        self._failed_in_a_row = 0
        self._error: Exception | None = None
        self._paused = False
        self._awaited = 0  # size of the batch the trainer waits for
        self._asked_at_number: int | None = None  # next number when the trainer asked for the batch it waits for
        self._changed = asyncio.Event()

    @property
    def error(self) -> Exception | None:
        """Why no more batches come, if so."""
        return self._error

    @property
    def finished(self) -> int:
        """Accepted episodes that wait for the trainer."""
        return len(self._finished)

    @property
    def consumed(self) -> int:
        """Episodes that the trainer has taken, including those before a resume."""
        return self._consumed

    @property
    def step(self) -> int:
        """Version of the weights that the next batch trains."""
        return self._consumed // self.gate.batch_size

    # Starting

    def feed(self, prompts: Iterable[Prompt]) -> None:
        """Append prompts to the queue."""
        self._prompts.extend(prompts)
        self._start_allowed()

    def pause(self) -> None:
        """Start no more episodes."""
        self._paused = True
        self._changed.set()

    def resume(self) -> None:
        """Start episodes again."""
        self._paused = False
        self._start_allowed()

    def set_version(self, version: int) -> None:
        """The servers now hold ``version``: the gate opens for another batch."""
        self.gate.set_version(version)
        self._start_allowed()
        self._changed.set()

    async def hold_weights(self, version: int) -> None:
        """Wait before the servers load ``version``, if the pacer chooses so: until the batch to train it is finished.

        Call it when the trainer has finished a step. Returns at once if the batch needs episodes that do not run yet.
        """
        if self._pacer is None or self.step != version:
            return
        self._note_request()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pacer.hold_s(asyncio.get_running_loop().time())):
                await self._wait_for_running(version)

    async def _wait_for_running(self, version: int) -> None:
        """Return once the batch of the step ``version`` is finished, or needs more episodes than those that run."""
        count = self._awaited or self.gate.batch_size
        while self.step == version and self._error is None and not self._paused:
            missing = count - len(self._finished)
            if missing <= 0 or missing > len(self._running):
                return
            self._changed.clear()
            await self._changed.wait()

    def prompts_wanted(self) -> int:
        """Prompts missing for the episodes the gate allows now and, in asynchronous training, at the next version.

        The next version's episodes can then start as soon as the servers hold it, before the trainer asks again.
        """
        ahead = self.gate.batch_size if self.gate.max_staleness > 0 else 0
        return self._bounded(min(self.gate.fresh_capacity(), self._paced_capacity()) + ahead) - len(self._prompts)

    def _capacity(self) -> int:
        """Episodes that may start now; none if 0 or less."""
        capacity = min(self.gate.capacity(), self._paced_capacity())
        if self._pacer is not None:
            startable = self._pacer.startable(finished=len(self._finished), running=len(self._running))
            capacity = capacity if startable is None else min(capacity, startable)
        return self._bounded(capacity)

    def _paced_capacity(self) -> int:
        if self._pacer is None:
            return self.gate.fresh_capacity()
        limit = self._pacer.limit(self.gate.version)
        if self._asked_at_number is not None:  # the batch asked for must be able to complete
            limit = max(limit, self._consumed + self._awaited)
        return limit - (self.gate.accepted + self.gate.running)

    def _bounded(self, capacity: int) -> int:
        """``capacity``, limited by the end of training and by the queue size."""
        if self._total_batches is not None:
            total = self._total_batches * self.gate.batch_size
            capacity = min(capacity, total - self.gate.accepted - self.gate.running)
        if self._queue_size is not None:
            capacity = min(capacity, self._queue_size - len(self._finished) - len(self._running))
        return capacity

    def _start_allowed(self) -> None:
        while self._prompts and not self._paused and self._error is None and self._capacity() > 0:
            now = asyncio.get_running_loop().time()
            episode = Episode(self._next_number, self.gate.version, self._prompts.popleft(), now)
            self._next_number += 1
            self.gate.started()
            self._running[episode.number] = episode
            task = asyncio.get_running_loop().create_task(self._run(episode))
            self._tasks[task] = episode
            task.add_done_callback(self._ended)

    async def _run(self, episode: Episode) -> bool:
        """Whether the episode is accepted; if so, keep its trajectories."""
        prompt = episode.prompt
        with span("episode", number=episode.number, version=episode.version) as opened:
            trajectories, accepted = await run_prompt(self._engine, prompt, episode.number)
            opened.set_attributes({"accepted": accepted, "samples": len(trajectories)})
        if accepted:
            episode.trajectories = trajectories
        elif trajectories and len(self._rejected_kept) < self._max_rejected_kept:
            self._rejected_kept.append([trajectory.without_experts() for trajectory in trajectories])
        return accepted

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
            if accepted:
                self._finished[episode.number] = episode
                self.counters.seconds.append(asyncio.get_running_loop().time() - episode.started)
            else:
                self._rejected()
        self._start_allowed()
        # Wake the waiting trainer only if its batch may be complete, or may never be.
        if not accepted or len(self._finished) >= self._awaited or not self._running:
            self._changed.set()

    def _rejected(self) -> None:
        self.counters.rejected += 1
        self._rejected_since_batch += 1
        if self._max_rejected is None or self._rejected_since_batch <= self._max_rejected or self._error is not None:
            return
        self._error = RolloutError(
            f"{self._rejected_since_batch} episodes were rejected for one batch of {self.gate.batch_size}, "
            f"{len(self._finished)} are accepted and waiting; rollout.max_rejected_batches allows "
            f"{self._max_rejected} rejections. With actor.dynamic_sampling nearly all groups have equal rewards: the "
            "problems are too easy or too hard for the model, or the reward is constant. Change the data or the reward "
            "function, set actor.dynamic_sampling=false, or raise rollout.max_rejected_batches"
        )

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

    async def take(self, count: int, *, feeding: bool, update_pending: Callable[[], bool]) -> list[Episode] | None:
        """The next ``count`` accepted episodes in prompt order; with ``feeding`` None if prompts are needed first.

        ``update_pending``: whether the version is about to change. Raises ``RolloutError`` if no batch can ever finish.
        """
        self._awaited = count
        self._note_request()
        while True:
            if self._error is not None:
                raise self._error
            if feeding and self.prompts_wanted() > 0:
                return None
            if self._pacer is not None and len(self._finished) >= count:
                self._pacer.enough(asyncio.get_running_loop().time())
            if self.is_complete(count):
                return self._consume(count)
            self.check_progress(count, update_pending=update_pending())
            self._changed.clear()
            await self._changed.wait()

    def _note_request(self) -> None:
        if self._pacer is not None and self._asked_at_number is None:
            self._asked_at_number = self._next_number
            self._pacer.asked(asyncio.get_running_loop().time(), running=len(self._running))
            self._start_allowed()

    def _note_delivery(self) -> None:
        if self._pacer is not None and self._asked_at_number is not None:
            running = sum(number < self._asked_at_number for number in self._running)
            self._asked_at_number = None
            self._pacer.delivered(asyncio.get_running_loop().time(), running=running)

    def take_counters(self) -> tuple[Counters, int]:
        """Counters since the last call, and the step of the last batch."""
        counters, self.counters = self.counters, Counters()
        counters.reserve = self._pacer.reserve if self._pacer is not None else 0
        return counters, (self._consumed - 1) // self.gate.batch_size

    def take_rejected(self) -> list[Trajectory]:
        """Samples of episodes that were rejected since the last call, up to ``max_rejected_kept`` episodes."""
        kept, self._rejected_kept = self._rejected_kept, []
        return [trajectory for episode in kept for trajectory in episode]

    def notify(self) -> None:
        """Make ``take`` check its conditions again."""
        self._changed.set()

    def is_complete(self, count: int) -> bool:
        """Whether a batch of ``count`` finished episodes may be taken."""
        if len(self._finished) < count:
            return False
        # Later batches consume the remaining episodes, running ones included, oldest first. If one of them would be too
        # old for its batch, this batch must wait for an older episode.
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
                f"episode {episode.number} started at v{episode.version} and is consumed at step {step}"
            )
        self._consumed += count
        self._rejected_since_batch = 0
        self._note_delivery()
        self._start_allowed()
        return batch

    def count_ungated(self, count: int) -> None:
        """Account for ``count`` episodes that rollout_batch generated outside the staleness gate."""
        self._consumed += count
        self.gate.accepted += count

    def check_progress(self, count: int, *, update_pending: bool) -> None:
        """Raise ``RolloutError`` if a batch of ``count`` episodes can never complete."""
        if self._running or update_pending:
            return
        state = f"{len(self._finished)} of {count} episodes are finished and none is running"
        if self._paused:
            raise RolloutError(f"{state}, but the engine is paused; call resume() first")
        if self._capacity() <= 0:
            raise RolloutError(
                f"{state}, and none may start: version {self.gate.version}, accepted {self.gate.accepted}, "
                f"max_head_offpolicyness {self.gate.max_staleness}, batch {self.gate.batch_size}; "
                "publish new weights with update_weights() after each batch"
            )
        raise RolloutError(f"{state}, and no prompt is left; submit more than {count} episodes")

    # Recovery

    def state_dict(self) -> dict[str, Any]:
        """State for a resume: the rows that were read and not consumed, oldest first.

        Running episodes, and finished ones in no batch yet, are saved as rows: the resumed run generates them again
        with the weights it starts with. The gate relies on that (accepted = version · batch).
        """
        unconsumed = [*self._running.values(), *self._finished.values()]
        rows = [episode.prompt.data for episode in sorted(unconsumed, key=lambda episode: episode.number)]
        rows += [prompt.data for prompt in self._prompts]
        first = min((episode.number for episode in unconsumed), default=self._next_number)
        return {"consumed": self._consumed, "next_number": first, "rows": rows}

    def load_state_dict(
        self, state: dict[str, Any], *, version: int, total_batches: int | None = None
    ) -> list[dict[str, Any]]:
        """Resume at ``version``. Returns the rows to use before the loader's next ones.

        ``total_batches``, if given, replaces the constructor's.
        """
        self.start_at(version)
        self._total_batches = self._total_batches if total_batches is None else total_batches
        self._next_number = state["next_number"]
        return list(state["rows"])

    def start_at(self, version: int) -> None:
        """Start at the step that trains the weights ``version``, with no episode running."""
        assert not self._running, "episodes are running while the version is reset"
        self.gate.resume(version)
        self._consumed = version * self.gate.batch_size
        self._finished.clear()
        self._prompts.clear()
        self._asked_at_number = None
        if self._pacer is not None:
            self._pacer.reset()

    def stop(self, error: Exception) -> None:
        """Start no more episodes; ``take`` raises ``error``."""
        self._error = self._error or error
        self._changed.set()

    async def discard(self) -> None:
        """Cancel all episodes, and drop finished ones and all prompts."""
        self._prompts.clear()
        self._finished.clear()
        self._rejected_kept.clear()
        await self._cancel()
        for _ in range(len(self._running)):
            self.gate.finished(accepted=False)
        self._running.clear()
        self._tasks.clear()
        self._changed.set()

    async def close(self) -> None:
        """Cancel all episodes."""
        self.stop(RolloutError("the engine is destroyed"))
        await self._cancel()

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.remove_done_callback(self._ended)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
