"""Processes that call the reward function, each call with a deadline.

A call that hangs is killed with its process, which is replaced; one that raises is an error of its sample. Calls go to
a process in messages of about ``MESSAGE_S`` of work, so that trivial rewards cost little and slow ones spread.
"""

from __future__ import annotations

import asyncio
import collections
import inspect
import itertools
import logging
from typing import Any, Self

from areal_api.config import RewardConfig
from areal_trainer.reward.function import (
    ARGUMENTS,
    RewardError,
    RewardFunction,
    address_of,
    check_columns,
    check_signature,
    checked_reward,
    explained,
    load_reward_function,
)
from areal_trainer.reward.process import Call, WorkerProcess

logger = logging.getLogger(__name__)

MESSAGE_S = 0.01
MOST_CALLS_A_MESSAGE = 64
FIRST_GUESS_S = 0.0005  # of a call, before any was measured


class RewardPool:
    """Calls a reward function in ``processes`` processes; with 0, in the event loop, where a sync one has no deadline.

    ``score`` belongs to one event loop. The processes start with the first ``score``, or with ``start`` before that, so
    that they import while others work. An async function's calls run side by side, a sync one's in turn.
    """

    def __init__(self, function: RewardFunction | str, *, processes: int = 1, timeout_s: float = 15.0) -> None:
        self.function = load_reward_function(function) if isinstance(function, str) else function
        self.name = function if isinstance(function, str) else getattr(function, "__qualname__", repr(function))
        check_signature(self.function, name=self.name)
        self.timeout_s = timeout_s
        address = address_of(self.function) if processes else None
        self.processes = [WorkerProcess(address, timeout_s=timeout_s) for _ in range(processes) if address]
        self._waiting: collections.deque[Call] = collections.deque()
        self._numbers = itertools.count()
        self._call_s = FIRST_GUESS_S
        self._columns_checked = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work = asyncio.Event()
        self._servers: list[asyncio.Task[None]] = []
        self._running: set[Call] = set()

    @classmethod
    def of(cls, config: RewardConfig, function: RewardFunction | None = None) -> Self:
        """The pool that ``config`` asks for, with ``function`` in place of ``reward.path`` where it is given."""
        return cls(function or config.path, processes=config.processes, timeout_s=config.timeout)

    def start(self) -> None:
        """Start the processes now. Call it from a thread that lives as long as the pool: Linux kills them with it."""
        for process in self.processes:
            process.start()

    def close(self) -> None:
        """Kill the processes; calls that run or wait are cancelled. Any thread may call it."""
        self._closed = True
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._shut)
        else:
            self._shut()

    async def score(
        self, prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], /, **columns: Any
    ) -> float:
        """The reward of one sample. Columns named like one of the first four give way to these.

        Raises ``RewardError``, which names the sample, where the function raises, hangs or gives no finite number;
        ``ValueError`` where the function wants a column that the data has not.
        """
        if self._closed:
            raise RuntimeError("the reward pool is closed")
        if not self._columns_checked:
            check_columns(self.function, columns, name=self.name)
            self._columns_checked = True
        given = (prompt, completions, prompt_ids, completion_ids)
        arguments = {**columns, **dict(zip(ARGUMENTS, given, strict=True))}
        if not self.processes:
            return await self._score_here(arguments)
        loop = self._attach()
        call = Call(next(self._numbers), arguments, loop.create_future())
        self._waiting.append(call)
        self._work.set()
        return await call.result

    async def _score_here(self, arguments: dict[str, Any]) -> float:
        sample = {"task_id": str(arguments.get("task_id", "")), "completion": str(arguments["completions"])}
        try:
            value = self.function(**arguments)
            if inspect.isawaitable(value):
                value = await asyncio.wait_for(value, self.timeout_s)
            return checked_reward(value)
        except TimeoutError as error:
            raise RewardError(f"it took more than reward.timeout = {self.timeout_s:g} s", **sample) from error
        except Exception as error:
            raise RewardError(explained(error), **sample) from error

    def _attach(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self.start()
            self._servers = [loop.create_task(self._serve(process)) for process in self.processes]
            for server in self._servers:
                server.add_done_callback(self._served)
        assert self._loop is loop, "a reward pool belongs to one event loop"
        return loop

    async def _serve(self, process: WorkerProcess) -> None:
        """Give ``process`` calls for as long as the pool lives."""
        while True:
            while not self._waiting:
                self._work.clear()
                await self._work.wait()
            problem = await process.connect()
            if problem is not None:
                process.kill()
                self._fail_waiting(problem)
                continue
            calls = self._take()
            self._running.update(calls)
            again, seconds = await process.score(calls)
            self._running.difference_update(calls)
            if again or not process.alive:
                logger.warning("a process of the reward pool ended; %d calls go to another", len(again))
                self._waiting.extendleft(reversed(again))
                self._work.set()
            self._call_s += 0.2 * (max(seconds, 1e-6) - self._call_s)

    def _served(self, server: asyncio.Task[None]) -> None:
        """Nobody may wait for a server that is no more."""
        if not server.cancelled() and (error := server.exception()) is not None:
            logger.error("the reward pool failed", exc_info=error)
            self._fail_waiting(f"the reward pool failed: {error!r}")
            for call in self._running:
                call.fail(f"the reward pool failed: {error!r}")

    def _take(self) -> list[Call]:
        """The calls of the next message. Other processes may have taken all there were meanwhile."""
        share = -(-len(self._waiting) // len(self.processes))
        size = min(share, MOST_CALLS_A_MESSAGE, max(1, int(MESSAGE_S / self._call_s)))
        taken: list[Call] = []
        while self._waiting and len(taken) < size:
            if taken and (taken[0].alone or self._waiting[0].alone):
                break
            call = self._waiting.popleft()
            if not call.result.done():  # its caller has gone
                taken.append(call)
        return taken

    def _fail_waiting(self, problem: str) -> None:
        while self._waiting:
            self._waiting.popleft().fail(problem)

    def _shut(self) -> None:
        for server in self._servers:
            server.cancel()
        for process in self.processes:
            process.kill()
        for call in (*self._running, *self._waiting):
            call.result.cancel()
        self._waiting.clear()
