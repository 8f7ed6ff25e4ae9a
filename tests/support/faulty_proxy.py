"""An HTTP/1.1 proxy between trainer and server that records every exchange and injects faults into answers.

It runs on an event loop in its own thread; its methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

AnswerFault = Literal["slow", "cut", "half"]
HEAD_END = b"\r\n\r\n"
POLL_S = 0.05  # how often to check whether a waiting client has hung up


@dataclass
class Exchange:
    """A request and its answer.

    ``answered``: when the server answered; ``status`` is 0 if it never did. ``delivered``: when the whole answer was
    forwarded, or None.
    """

    path: str
    request: bytes
    began: float
    seen: object = None  # result of ``on_request``
    status: int = 0
    answer: bytes = b""
    answered: float = 0.0
    delivered: float | None = None


@dataclass
class BadAnswers:
    """Faults the next ``left`` answers of ``path`` (any path if empty).

    slow: delayed by ``delay_s``. cut: the connection is closed instead. half: closed after half of the answer.
    """

    kind: AnswerFault
    path: str
    left: int
    delay_s: float = 0.0
    injected: int = 0


@dataclass
class FaultyProxy:
    """Proxies the server at 127.0.0.1:``upstream``; listens on ``port``, which is set on entering.

    ``on_request`` is called with each request in a worker thread before the request is forwarded.
    """

    upstream: int
    on_request: Callable[[Exchange], object] = lambda exchange: None
    exchanges: list[Exchange] = field(default_factory=list)
    bad: list[BadAnswers] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._clients: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10.0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    @property
    def open_connections(self) -> int:
        """Number of connected clients."""
        return len(self._clients)

    def cut_now(self) -> int:
        """Close all open connections; returns how many."""

        async def cut() -> int:
            clients = list(self._clients)
            for client in clients:
                client.transport.abort()
            return len(clients)

        return asyncio.run_coroutine_threadsafe(cut(), self._loop).result(10.0)

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.transport.abort()
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):  # cancelled: by _close
            pass
        finally:
            self._clients.discard(writer)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Forward one request and its answer. Returns whether the connection stays open."""
        head, body = await _message(reader)
        exchange = Exchange(head.split(b" ", 2)[1].decode(), body, time.monotonic())
        exchange.seen = await asyncio.to_thread(self.on_request, exchange)
        self.exchanges.append(exchange)
        answering = asyncio.ensure_future(self._ask(head + body))
        try:
            while not answering.done():
                await asyncio.wait([answering], timeout=POLL_S)
                if reader.at_eof():
                    return False
            answer_head, answer = answering.result()
        finally:
            answering.cancel()
        exchange.status, exchange.answer = int(answer_head.split(b" ", 2)[1]), answer
        exchange.answered = time.monotonic()
        whole = await self._apply_fault(exchange.path, writer, answer_head, answer)
        if whole:
            exchange.delivered = time.monotonic()  # before the client can receive it
            writer.write(answer_head + answer)
            await writer.drain()
        return whole

    async def _ask(self, request: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            writer.write(request)
            return await _message(reader)
        finally:
            writer.transport.abort()

    async def _apply_fault(self, path: str, writer: asyncio.StreamWriter, head: bytes, answer: bytes) -> bool:
        """Apply a pending fault. Returns whether the answer should still be sent."""
        bad = next((one for one in self.bad if one.left > 0 and one.path in ("", path)), None)
        if bad is None:
            return True
        bad.left -= 1
        bad.injected += 1
        if bad.kind == "slow":
            await asyncio.sleep(bad.delay_s)
            return True
        if bad.kind == "half":
            writer.write(head + answer[: len(answer) // 2])
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()  # not abort(): the written part must arrive
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return False


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a request or an answer. A chunked body is kept as is."""
    head = await reader.readuntil(HEAD_END)
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await reader.readuntil(b"\r\n")
        return head, body
    return head, await reader.readexactly(int(fields.get(b"content-length", b"0")))
