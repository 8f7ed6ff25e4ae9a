"""The trainer's side of the session gateway: starts its process, and generates for it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from areal_trainer.gateway.channel import (
    CALL,
    HEADER,
    Call,
    Cancel,
    Counted,
    Generate,
    Listening,
    Parse,
    Result,
    Sample,
    frame,
    read_frame,
)
from areal_trainer.gateway.settings import GatewaySettings
from areal_trainer.rollout.agent_statistics import AgentStatistics
from areal_trainer.rollout.loop import LoopThread
from areal_trainer.rollout.workflow import GenerationEngine
from areal_trainer.routing import EncodedExperts
from areal_trainer.servers.client import ServerRefusedError
from areal_trainer.servers.generation import ModelRequest

logger = logging.getLogger(__name__)
START_TIMEOUT_S = 120.0  # for importing transformers on a busy machine


class GatewayError(Exception):
    """The gateway's process did not start, or refused a request of the trainer."""


class GatewayProcess:
    """The gateway's process and its channel, served on a separate event loop. A process that dies is replaced."""

    def __init__(
        self, engine: GenerationEngine, settings: GatewaySettings, *, address_file: Path | None = None
    ) -> None:
        """``address_file``: where URL and admin key are written for programs outside.

        Nothing runs before ``start`` or ``url``.
        """
        self._address_file = address_file
        self._engine = engine
        self._settings = settings
        self._loop: LoopThread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._ready: asyncio.Task[str] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._statistics = AgentStatistics()

    @property
    def admin_key(self) -> str:
        """The key that opens sessions."""
        return self._settings.admin_key

    @property
    def pid(self) -> int:
        """Process ID of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process without waiting for it."""
        if self._loop is None:
            self._loop = LoopThread("gateway")
        self._loop.call(self._ensure_running)

    async def url(self) -> str:
        """Base URL of the running gateway; starts it if necessary. May be awaited on any event loop."""
        if self._loop is None:
            self._loop = LoopThread("gateway")
        return await asyncio.wrap_future(self._loop.start(self._url()))

    def take_statistics(self) -> dict[str, float]:
        """Statistics of sessions and calls since the last call; they arrive up to half a second late."""
        return {} if self._loop is None else self._loop.call(self._statistics.take)

    def close(self) -> None:
        """End the process and the event loop."""
        if self._loop is not None:
            self._loop.run(self._stop())
            self._loop.close()
            self._loop = None

    # On the loop

    async def _url(self) -> str:
        return await asyncio.shield(self._ensure_running())

    def _ensure_running(self) -> asyncio.Task[str]:
        died = self._process is not None and self._process.poll() is not None
        if died:
            logger.warning("the gateway's process ended with status %s; starting another", self._process.returncode)  # type: ignore[union-attr]
        if self._ready is None or died or (self._ready.done() and self._ready.exception() is not None):
            self._spawn()
            self._ready = asyncio.get_running_loop().create_task(self._connect())
        return self._ready

    def _spawn(self) -> None:
        self._kill()
        self._statistics.restart()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "areal_trainer.gateway", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
        self._channel = ours

    async def _connect(self) -> str:
        assert self._channel is not None
        reader, writer = await asyncio.open_connection(sock=self._channel)
        settings = self._settings.model_dump_json().encode()
        writer.write(HEADER.pack(len(settings)) + settings)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                listening = CALL.decode(await read_frame(reader))
        except TimeoutError:
            raise GatewayError(f"the gateway did not listen within {START_TIMEOUT_S:g} s") from None
        except (EOFError, OSError):
            raise GatewayError("the gateway's process ended before it listened; its log names the reason") from None
        assert isinstance(listening, Listening)
        self._serving = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        url = f"http://{_reachable(self._settings.host)}:{listening.port}"
        if self._address_file is not None:
            _write_private(self._address_file, {"url": url, "admin_key": self.admin_key})
        return url

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks: dict[int, asyncio.Task[None]] = {}
        try:
            while True:
                call: Call = CALL.decode(await read_frame(reader))
                if isinstance(call, Counted):
                    self._statistics.update(call.counts)
                elif isinstance(call, Cancel):
                    if (cancelled := tasks.get(call.number)) is not None:
                        cancelled.cancel()
                elif isinstance(call, Generate | Parse):
                    tasks[call.number] = asyncio.get_running_loop().create_task(self._answer(call, writer))
                    tasks[call.number].add_done_callback(partial(_forget, tasks, call.number))
        except (EOFError, OSError):  # the process ended
            pass
        finally:
            for task in list(tasks.values()):
                task.cancel()
            writer.close()

    async def _answer(self, call: Generate | Parse, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(call, Generate):
                result = Result(call.number, samples=await self._generate(call))
            else:
                result = Result(call.number, parsed=await self._engine.apost(call.path, call.body))
        except (ValueError, ServerRefusedError) as error:
            result = Result(call.number, kind="refused", error=str(error))
        except Exception as error:  # noqa: BLE001  # whatever it is, the agent gets status 503
            logger.warning("a call of an agent failed: %s: %s", type(error).__name__, error)
            result = Result(call.number, kind="failed", error=f"{type(error).__name__}: {error}")
        writer.write(frame(result))

    async def _generate(self, call: Generate) -> list[Sample]:
        gconfig = self._settings.eval_gconfig if call.evaluation else self._settings.gconfig
        changes: dict[str, Any] = {"max_new_tokens": max(1, call.max_new_tokens)}
        changes["min_new_tokens"] = min(gconfig.min_new_tokens, changes["max_new_tokens"])
        if call.stop:
            changes["stop"] = [*(gconfig.stop or ()), *call.stop]
        request = ModelRequest(
            call.input_ids,
            gconfig.model_copy(update=changes),
            conversation=call.session,
            json_schema=call.json_schema,
            top_logprobs=call.top_logprobs,
        )
        responses = await self._engine.agenerate_n(request, call.n)
        return [
            Sample(
                response.output_tokens,
                response.output_logprobs,
                response.output_versions,
                response.stop_reason,
                response.top_logprobs,
                EncodedExperts.of(response.experts),
            )
            for response in responses
        ]

    async def _stop(self) -> None:
        for task in (self._ready, self._serving):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _forget(tasks: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    tasks.pop(number, None)


def _write_private(path: Path, content: dict[str, str]) -> None:
    """Write a file that only this user can read."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file)
    temporary.replace(path)


def _reachable(host: str) -> str:
    """An address at which this machine reaches a server that listens on ``host``."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{address}]" if ":" in address else address
