"""Runs an agent in worker processes (``rollout.agent.mode: subproc``), in the trainer's Python environment or another.

A class whose ``run`` is ``async`` runs many sessions in a process. A plain ``run`` has a process to itself while it
runs, with the session's address and key also in the environment of the SDKs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from areal_api.agent_config import AgentConfig

WORKER = Path(__file__).with_name("agent_worker.py")
START_TIMEOUT_S = 300.0  # frameworks take long to import on a busy machine
RESPONSE_TIMEOUT_S = 1.0  # after which a process whose agent was cancelled gets no more sessions
CANCEL_TIMEOUT_S = 10.0  # after which it is killed
LONGEST_ANSWER = 1 << 20


class AgentProcessError(Exception):
    """An agent raised in its process, or the process ended."""


class AgentProcess:
    """One worker process."""

    def __init__(self, python: str, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # The source as an argument: as a script, it would put its folder on the module path.
            self._process = subprocess.Popen(
                [python, "-c", WORKER.read_text(), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        self._socket = ours
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._is_async = False
        self._cancelled: set[asyncio.Future[dict[str, Any]]] = set()  # sessions that have not ended yet
        self.sessions = 0

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    async def responds(self) -> bool:
        """Whether cancelled sessions have ended; a blocking call holds up all sessions of the process."""
        if self._cancelled:
            await asyncio.wait(self._cancelled, timeout=RESPONSE_TIMEOUT_S)
        return self.alive and not self._cancelled

    @property
    def is_async(self) -> bool:
        """Whether the agent runs many sessions concurrently; known after ``start``."""
        return self._is_async

    async def start(self, *, path: str, kwargs: Mapping[str, Any], memory_bytes: int) -> None:
        """Wait until the agent is constructed. Raises ``AgentProcessError``."""
        reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=LONGEST_ANSWER)
        self._send({"path": path, "kwargs": kwargs, "memory_bytes": memory_bytes})
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                ready = await reader.readline()
        except TimeoutError:
            self.kill()
            raise AgentProcessError(f"importing it took more than {START_TIMEOUT_S:g} s") from None
        except OSError:
            ready = b""
        if not ready:
            raise AgentProcessError(self._ended())
        answer = msgspec.json.decode(ready)
        if "error" in answer:
            self.kill()
            raise AgentProcessError(f"{answer['error']}\n{answer['traceback']}")
        self._is_async = answer["async"]
        self._reading = asyncio.create_task(self._read(reader))

    async def run(self, data: dict[str, Any], access: dict[str, str]) -> Any:
        """What the agent returns. Raises ``AgentProcessError``. If cancelled, so is the agent, or its process ends."""
        number = next(self._numbers)
        self._answers[number] = answered = asyncio.get_running_loop().create_future()
        self._send({"number": number, "data": data, "access": access})
        try:
            answer = await asyncio.shield(answered)
        except asyncio.CancelledError:
            if self._is_async:
                self._send({"cancel": number})
                self._cancelled.add(answered)
                answered.add_done_callback(self._cancelled.discard)
                asyncio.get_running_loop().call_later(CANCEL_TIMEOUT_S, self._kill_unless_done, answered)
            else:
                self.kill()
            raise
        if "error" in answer:
            raise AgentProcessError(f"{answer['error']}\n{answer.get('traceback', '')}".rstrip())
        return answer["returned"]

    def kill(self) -> None:
        """End the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process; runs on the event loop of ``start``."""
        self.kill()
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
        else:
            self._socket.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        reason = None
        try:
            while line := await reader.readline():
                answer = msgspec.json.decode(line)
                if (answered := self._answers.pop(answer["number"], None)) is not None and not answered.done():
                    answered.set_result(answer)
        except ValueError:
            reason = f"its process sent an answer of more than {LONGEST_ANSWER} bytes"
        except OSError:  # the process ended
            pass
        self.kill()
        for answered in self._answers.values():
            if not answered.done():
                answered.set_result({"error": reason or self._ended()})
        self._answers.clear()

    def _kill_unless_done(self, answered: asyncio.Future[dict[str, Any]]) -> None:
        if not answered.done():
            self.kill()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(msgspec.json.encode(message) + b"\n")

    def _ended(self) -> str:
        return f"its process ended with status {self._process.wait()}; the log has its output"


class PooledAgent:
    """An agent that runs in worker processes. All methods are called on one event loop."""

    def __init__(self, *, path: str, kwargs: Mapping[str, Any], config: AgentConfig) -> None:
        """Raises ``ValueError`` if ``rollout.agent.python`` is no interpreter."""
        self.path = path
        self._kwargs = kwargs
        self._config = config
        self._python, self._environment = _interpreter(config.python)
        self._processes: list[AgentProcess] = []
        self._starting = asyncio.Lock()
        self._free: asyncio.Semaphore | None = None  # of a plain run: workers that run no session

    async def start(self) -> None:
        """Start the first process. Raises ``ValueError`` if the class cannot be used."""
        try:
            process = await self._process()
        except AgentProcessError as error:
            hint = "" if self._config.python is None else f" in rollout.agent.python = {self._python}"
            raise ValueError(f"workflow.path is {self.path!r}, which cannot be used{hint}: {error}") from None
        process.sessions -= 1
        if not process.is_async:
            self._free = asyncio.Semaphore(self._config.subproc_max_workers)

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> Any:
        """What the agent returns for the row ``data``. Raises ``AgentProcessError``."""
        access = {"base_url": extra_kwargs["base_url"], "api_key": extra_kwargs["api_key"]}
        async with self._free or contextlib.nullcontext():
            process = await self._process()
            try:
                return await process.run(data, access)
            finally:
                process.sessions -= 1

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.close()
        self._processes.clear()

    async def _process(self) -> AgentProcess:
        """The process with the fewest sessions, or a new one if none is idle; it counts one more session."""
        async with self._starting:
            for ended in [process for process in self._processes if not process.alive]:
                ended.close()
                self._processes.remove(ended)
            responsive = [process for process in self._processes if await process.responds()]
            least = min(responsive, key=lambda process: process.sessions, default=None)
            if least is None or (least.sessions and len(responsive) < self._config.subproc_max_workers):
                least = AgentProcess(self._python, self._environment)
                self._processes.append(least)
                try:
                    memory_bytes = int(self._config.subproc_memory_gb * 2**30)
                    await least.start(path=self.path, kwargs=self._kwargs, memory_bytes=memory_bytes)
                except BaseException:
                    self._processes.remove(least)
                    least.close()
                    raise
            least.sessions += 1
            return least


def _interpreter(python: str | None) -> tuple[str, dict[str, str]]:
    """The interpreter's path and environment; raises ``ValueError``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if python is None:
        return sys.executable, {**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = shutil.which(python)
    if found is None:
        raise ValueError(
            f"rollout.agent.python is {python!r}, which is no executable file; give the path of a Python interpreter"
        )
    return os.path.abspath(found), environment
