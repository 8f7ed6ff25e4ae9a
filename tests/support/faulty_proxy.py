"""A proxy between trainer and server that speaks HTTP/1.1, records every exchange and, when told to, answers badly.

It runs on an event loop in a thread of its own; its methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Badness = Literal["slow", "cut", "half"]
HEAD_END = b"\r\n\r\n"
LOOK_S = 0.05  # between two looks at a client that waits: whether it has hung up


@dataclass
class Exchange:
    """A request and its answer. ``delivered`` is when the whole answer was sent on; None where it was not.

    ``answered`` is when the server had answered, ``status`` 0 where it never did.
    """

    path: str
    request: bytes
    began: float
    seen: object = None  # what ``on_request`` said
    status: int = 0
    answer: bytes = b""
    answered: float = 0.0
    delivered: float | None = None


@dataclass
class Bad:
    """Answers of ``path`` (every path where it is empty) go wrong ``left`` times more.

    slow: it comes ``delay_s`` late. cut: the connection breaks instead. half: half of it comes, then it breaks.
    """

    kind: Badness
    path: str
    left: int
    delay_s: float = 0.0
    struck: int = 0


@dataclass
class FaultyProxy:
    """In front of the server at 127.0.0.1:``upstream``; ``port`` is its own once it is entered.

    ``on_request`` is called with each request in a thread of its own, before the server gets it.
    """

    upstream: int
    on_request: Callable[[Exchange], object] = lambda exchange: None
    exchanges: list[Exchange] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> FaultyProxy:
        self._loop = asyncio.new_event_loop()
        self._clients: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self._server = listening.result(10.0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    def cut_now(self) -> int:
        """Break every connection that there is; how many."""

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
        """Pass one request on, and its answer back; whether the connection goes on."""
        head, body = await _message(reader)
        exchange = Exchange(head.split(b" ", 2)[1].decode(), body, time.monotonic())
        exchange.seen = await asyncio.to_thread(self.on_request, exchange)
        self.exchanges.append(exchange)
        answering = asyncio.ensure_future(self._ask(head + body))
        try:
            while not answering.done():
                await asyncio.wait([answering], timeout=LOOK_S)
                if reader.at_eof():
                    return False
            answer_head, answer = answering.result()
        finally:
            answering.cancel()
        exchange.status, exchange.answer = int(answer_head.split(b" ", 2)[1]), answer
        exchange.answered = time.monotonic()
        whole = await self._spoil(exchange.path, writer, answer_head, answer)
        if whole:
            exchange.delivered = time.monotonic()  # before the client can look
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

    async def _spoil(self, path: str, writer: asyncio.StreamWriter, head: bytes, answer: bytes) -> bool:
        """Do what is due to an answer; whether it is to be sent all the same."""
        bad = next((one for one in self.bad if one.left > 0 and one.path in ("", path)), None)
        if bad is None:
            return True
        bad.left -= 1
        bad.struck += 1
        if bad.kind == "slow":
            await asyncio.sleep(bad.delay_s)
            return True
        if bad.kind == "half":
            writer.write(head + answer[: len(answer) // 2])
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()  # not abort(): what was written is to arrive
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return False


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a request or an answer. A body in chunks is kept as it is."""
    head = await reader.readuntil(HEAD_END)
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await reader.readuntil(b"\r\n")
        return head, body
    return head, await reader.readexactly(int(fields.get(b"content-length", b"0")))
