"""A pool of processes that call the reward function with a deadline for each call.

If a call hangs, its process is killed and replaced. If a call raises, only its sample fails. Calls are sent in batches
of about ``BATCH_S`` seconds of work, so that cheap rewards have little overhead and slow ones run in parallel.
"""

from __future__ import annotations

import asyncio
import collections
import inspect
import itertools
import logging
from typing import Any, Self

from areal_api.data_config import RewardConfig
from areal_trainer.reward.function import (
    ARGUMENTS,
    RewardError,
    RewardFunction,
    check_columns,
    check_signature,
    checked_reward,
    describe_exception,
    function_reference,
    load_reward_function,
)
from areal_trainer.reward.process import Call, WorkerProcess

logger = logging.getLogger(__name__)

BATCH_S = 0.01
MAX_BATCH_CALLS = 64
INITIAL_CALL_S = 0.0005  # assumed time of a call before the first measurement


class RewardPool:
    """Calls a reward function in ``processes`` processes; with 0, in the event loop, where a sync one has no deadline.

    All calls of ``score`` must come from one event loop. The processes start at the first ``score``, or at ``start`` to
    import the function in the background. Each process calls an async function concurrently, a sync one sequentially.
    """

    def __init__(self, function: RewardFunction | str, *, processes: int = 1, timeout_s: float = 15.0) -> None:
        self.function = load_reward_function(function) if isinstance(function, str) else function
        self.name = function if isinstance(function, str) else getattr(function, "__qualname__", repr(function))
        check_signature(self.function, name=self.name)
        self.timeout_s = timeout_s
        reference = function_reference(self.function) if processes else None
        self.processes = [WorkerProcess(reference, timeout_s=timeout_s) for _ in range(processes) if reference]
        self._pending: collections.deque[Call] = collections.deque()
        self._numbers = itertools.count()
        self._mean_call_s = INITIAL_CALL_S
        self._columns_checked = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._running: set[Call] = set()

    @classmethod
    def of(cls, config: RewardConfig, function: RewardFunction | None = None) -> Self:
        """The pool for ``config``; ``function`` overrides ``reward.path``."""
        return cls(function or config.path, processes=config.processes, timeout_s=config.timeout)

    def start(self) -> None:
        """Start the processes. The calling thread must outlive the pool: Linux kills them when that thread exits."""
        for process in self.processes:
            process.start()

    def close(self) -> None:
        """Kill the processes and cancel all pending calls. Thread-safe."""
        self._closed = True
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._shut_down)
        else:
            self._shut_down()

    async def score(
        self, prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], /, **columns: Any
    ) -> float:
        """The reward of one sample. The first four arguments take precedence over columns of the same name.

        Raises ``RewardError``, which names the sample, if the function raises, times out or does not return a finite
        number, and ``ValueError`` if it requires a column that the dataset does not have.
        """
        if self._closed:
            raise RuntimeError("the reward pool is closed")
        if not self._columns_checked:
            check_columns(self.function, columns, name=self.name)
            self._columns_checked = True
        sample = (prompt, completions, prompt_ids, completion_ids)
        arguments = {**columns, **dict(zip(ARGUMENTS, sample, strict=True))}
        if not self.processes:
            return await self._score_in_process(arguments)
        loop = self._attach()
        call = Call(next(self._numbers), arguments, loop.create_future())
        self._pending.append(call)
        self._work.set()
        return await call.result

    async def _score_in_process(self, arguments: dict[str, Any]) -> float:
        sample = {"task_id": str(arguments.get("task_id", "")), "completion": str(arguments["completions"])}
        try:
            value = self.function(**arguments)
            if inspect.isawaitable(value):
                value = await asyncio.wait_for(value, self.timeout_s)
            return checked_reward(value)
        except TimeoutError as error:
            raise RewardError(f"it took more than reward.timeout = {self.timeout_s:g} s", **sample) from error
        except Exception as error:
            raise RewardError(describe_exception(error), **sample) from error

    def _attach(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self.start()
            self._tasks = [loop.create_task(self._run_worker(process)) for process in self.processes]
            for task in self._tasks:
                task.add_done_callback(self._worker_task_done)
        assert self._loop is loop, "a reward pool must be used from one event loop"
        return loop

    async def _run_worker(self, process: WorkerProcess) -> None:
        """Send calls to ``process`` for the lifetime of the pool."""
        while True:
            while not self._pending:
                self._work.clear()
                await self._work.wait()
            error = await process.connect()
            if error is not None:
                process.kill()
                self._fail_pending(error)
                continue
            calls = self._next_batch()
            self._running.update(calls)
            retries, seconds = await process.score(calls)
            self._running.difference_update(calls)
            if retries or not process.alive:
                logger.warning("a reward process exited; retrying %d of its calls", len(retries))
                self._pending.extendleft(reversed(retries))
                self._work.set()
            self._mean_call_s += 0.2 * (max(seconds, 1e-6) - self._mean_call_s)

    def _worker_task_done(self, task: asyncio.Task[None]) -> None:
        """Fail pending calls when a worker task exits, so that no caller waits for ever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the reward pool failed", exc_info=error)
            self._fail_pending(f"the reward pool failed: {error!r}")
            for call in self._running:
                call.fail(f"the reward pool failed: {error!r}")

    def _next_batch(self) -> list[Call]:
        """The calls of the next message; empty if other workers have taken all of them."""
        fair_share = -(-len(self._pending) // len(self.processes))
        size = min(fair_share, MAX_BATCH_CALLS, max(1, int(BATCH_S / self._mean_call_s)))
        batch: list[Call] = []
        while self._pending and len(batch) < size:
            if batch and (batch[0].isolated or self._pending[0].isolated):
                break
            call = self._pending.popleft()
            if not call.result.done():  # the caller was cancelled
                batch.append(call)
        return batch

    def _fail_pending(self, reason: str) -> None:
        while self._pending:
            self._pending.popleft().fail(reason)

    def _shut_down(self) -> None:
        for task in self._tasks:
            task.cancel()
        for process in self.processes:
            process.kill()
        for call in (*self._running, *self._pending):
            call.result.cancel()
        self._pending.clear()
