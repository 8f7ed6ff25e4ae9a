"""The trainer's side of a reward process: start it, send calls, collect results, kill it when a call hangs."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from areal_trainer.reward.function import FunctionReference, RewardError
from areal_trainer.reward.messages import HEADER, CallResult, WorkerReady, WorkerSetup, frame

START_TIMEOUT_S = 120.0  # for importing the reward module
GRACE_S = 1.0  # extra time for a process that enforces the deadlines of its calls itself
STALL_S = 0.2  # to read results that arrived while the trainer itself was stalled (SIGSTOP, an overloaded machine)


@dataclass(eq=False)
class Call:
    """A pending reward call for one sample."""

    number: int
    arguments: dict[str, Any]
    result: asyncio.Future[float]
    isolated: bool = False  # send it in its own batch: it was in a batch that hung and may be the cause

    def fail(self, reason: str) -> None:
        """Fail the call with a ``RewardError`` that names its sample."""
        if not self.result.done():
            task_id, completion = str(self.arguments.get("task_id", "")), str(self.arguments["completions"])
            self.result.set_exception(RewardError(reason, task_id=task_id, completion=completion))

    def finish(self, result: CallResult) -> None:
        """Complete the call with ``result``."""
        if result.error is not None:
            self.fail(result.error)
        elif not self.result.done():
            self.result.set_result(result.value)


class WorkerProcess:
    """A reward process and the socket to it. It is restarted after it exits."""

    def __init__(self, function: FunctionReference, *, timeout_s: float) -> None:
        self._setup = WorkerSetup(function, timeout_s)
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the event loop of reader and writer
        self._header: bytes | None = None  # of a message that was only partly received
        self._concurrent = False

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process ID; None before ``start``."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process if it is not running, without waiting until it has imported the reward module."""
        if self.alive:
            return
        self.kill()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "areal_trainer.reward.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
        ours.sendall(frame(self._setup))
        self._socket = ours

    async def connect(self) -> str | None:
        """Start the process if necessary and wait until it is ready. Returns an import error, or None."""
        self.start()
        if self._reader is not None:
            return None
        assert self._socket is not None
        self._loop = asyncio.get_running_loop()
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)
        try:
            ready: WorkerReady = await self._receive(START_TIMEOUT_S)
        except TimeoutError:
            return f"importing the reward module took more than {START_TIMEOUT_S:g} s"
        except (asyncio.IncompleteReadError, ConnectionError):
            return f"importing the reward module terminated the process ({self._exit_reason()})"
        self._concurrent = ready.concurrent
        return ready.error

    async def score(self, calls: Sequence[Call]) -> tuple[list[Call], float]:
        """Run ``calls`` and complete them.

        Returns the calls to retry because another call terminated the process, and the mean seconds per call.
        """
        assert self._writer is not None
        if not calls:
            return [], 0.0
        pending = {call.number: call for call in calls}
        self._writer.write(frame([(call.number, call.arguments) for call in calls]))
        deadline_s = self._timeout_s + GRACE_S if self._concurrent else self._timeout_s
        seconds = 0.0
        try:
            while pending:
                result = await self._receive_result(deadline_s)
                pending.pop(result.call).finish(result)
                seconds += result.seconds
        except TimeoutError:
            self.kill()
            reason = f"it took more than reward.timeout = {self._timeout_s:g} s and was killed"
            return self._fail_culprit(pending, reason), 0.0
        except (asyncio.IncompleteReadError, ConnectionError):
            return self._fail_culprit(pending, f"it terminated its process ({self._exit_reason()})"), 0.0
        return [], seconds / len(calls)

    def kill(self) -> None:
        """Kill the process immediately."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._writer is not None and self._loop is not None and not self._loop.is_closed():
            self._writer.close()
        elif self._socket is not None:
            self._socket.close()
        self._process = self._socket = self._reader = self._writer = self._header = None

    def _fail_culprit(self, pending: dict[int, Call], reason: str) -> list[Call]:
        """Fail the call that terminated the process and return the calls to retry.

        Sequential calls return in order, so the culprit is the first one without a result. With concurrent calls it
        may be any of them, so each is retried in isolation.
        """
        calls = list(pending.values())
        if self._concurrent and len(calls) > 1:
            for call in calls:
                call.isolated = True
            return calls
        calls[0].fail(reason)
        return calls[1:]

    async def _receive_result(self, deadline_s: float) -> CallResult:
        try:
            result: CallResult = await self._receive(deadline_s)
        except TimeoutError:
            result = await self._receive(STALL_S)
        return result

    async def _receive(self, deadline_s: float) -> Any:
        """The next message. After a ``TimeoutError`` the next call resumes where this one stopped."""
        assert self._reader is not None
        async with asyncio.timeout(deadline_s):
            if self._header is None:
                self._header = await self._reader.readexactly(HEADER.size)
            body = await self._reader.readexactly(HEADER.unpack(self._header)[0])
        self._header = None
        return pickle.loads(body)

    def _exit_reason(self) -> str:
        assert self._process is not None
        status = self._process.wait()
        self.kill()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
