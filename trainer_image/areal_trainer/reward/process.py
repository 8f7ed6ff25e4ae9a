"""The trainer's side of a process of the reward pool: start, send calls, collect answers, kill what hangs."""

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

from areal_trainer.reward.function import FunctionAddress, RewardError
from areal_trainer.reward.messages import HEADER, Answer, Hello, Ready, frame

START_TIMEOUT_S = 120.0  # until the reward's module is imported
GRACE_S = 1.0  # for a process that keeps the deadlines of its calls itself
STALL_S = 0.2  # to read what came in while the trainer itself stood still (SIGSTOP, a starved machine)


@dataclass(eq=False)
class Call:
    """A sample whose reward is wanted."""

    number: int
    arguments: dict[str, Any]
    result: asyncio.Future[float]
    alone: bool = False  # to be sent by itself: it was in a message that hung, and may be the reason

    def fail(self, reason: str) -> None:
        """End the call with a ``RewardError`` that names its sample."""
        if not self.result.done():
            task_id, completion = str(self.arguments.get("task_id", "")), str(self.arguments["completions"])
            self.result.set_exception(RewardError(reason, task_id=task_id, completion=completion))

    def finish(self, answer: Answer) -> None:
        """End the call with ``answer``."""
        if answer.problem is not None:
            self.fail(answer.problem)
        elif not self.result.done():
            self.result.set_result(answer.value)


class WorkerProcess:
    """One process and the socket to it. Started anew after each death."""

    def __init__(self, address: FunctionAddress, *, timeout_s: float) -> None:
        self._hello = Hello(address, timeout_s)
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # that of reader and writer
        self._header: bytes | None = None  # of a message that has not come whole
        self._concurrent = False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process number, None before ``start``."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process if it does not run; it imports the reward's module on its own time."""
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
        ours.sendall(frame(self._hello))
        self._socket = ours

    async def connect(self) -> str | None:
        """Start if need be and wait until the process can take calls. What is wrong with the function, or None."""
        self.start()
        if self._reader is not None:
            return None
        assert self._socket is not None
        self._loop = asyncio.get_running_loop()
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)
        try:
            ready: Ready = await self._receive(START_TIMEOUT_S)
        except TimeoutError:
            return f"importing the reward's module took more than {START_TIMEOUT_S:g} s"
        except (asyncio.IncompleteReadError, ConnectionError):
            return f"importing the reward's module ended the process ({self._ending()})"
        self._concurrent = ready.concurrent
        return ready.problem

    async def score(self, calls: Sequence[Call]) -> tuple[list[Call], float]:
        """Have ``calls`` done.

        Returns the calls to do again, because another one ended the process, and the mean time of a call.
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
                answer = await self._answer(deadline_s)
                pending.pop(answer.call).finish(answer)
                seconds += answer.seconds
        except TimeoutError:
            self.kill()
            return self._blame(pending, f"it took more than reward.timeout = {self._timeout_s:g} s and was killed"), 0.0
        except (asyncio.IncompleteReadError, ConnectionError):
            return self._blame(pending, f"it ended its process ({self._ending()})"), 0.0
        return [], seconds / len(calls)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._writer is not None and self._loop is not None and not self._loop.is_closed():
            self._writer.close()
        elif self._socket is not None:
            self._socket.close()
        self._process = self._socket = self._reader = self._writer = self._header = None

    def _blame(self, pending: dict[int, Call], reason: str) -> list[Call]:
        """Fail the call that ended the process; the others are to be done again.

        Calls in turn are answered in order, so it is the first without an answer. Of calls side by side any may be it:
        each is tried alone.
        """
        calls = list(pending.values())
        if self._concurrent and len(calls) > 1:
            for call in calls:
                call.alone = True
            return calls
        calls[0].fail(reason)
        return calls[1:]

    async def _answer(self, deadline_s: float) -> Answer:
        try:
            answer: Answer = await self._receive(deadline_s)
        except TimeoutError:
            answer = await self._receive(STALL_S)
        return answer

    async def _receive(self, deadline_s: float) -> Any:
        """The next message. After a ``TimeoutError`` the next call goes on where this one stopped."""
        assert self._reader is not None
        async with asyncio.timeout(deadline_s):
            if self._header is None:
                self._header = await self._reader.readexactly(HEADER.size)
            body = await self._reader.readexactly(HEADER.unpack(self._header)[0])
        self._header = None
        return pickle.loads(body)

    def _ending(self) -> str:
        assert self._process is not None
        status = self._process.wait()
        self.kill()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
