"""The gateway's end of the channel to the trainer."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any, Unpack

from areal_trainer.gateway.channel import (
    RESULT,
    Call,
    Cancel,
    Generate,
    Options,
    Parse,
    Result,
    Sample,
    frame,
    read_frame,
)
from areal_trainer.gateway.errors import GatewayError


class EngineClient:
    """Sends calls to the trainer, any number at a time. ``serve`` must run."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Result]] = {}

    @classmethod
    async def connect(cls, channel: socket.socket) -> EngineClient:
        """A client on the connected socket ``channel``."""
        return cls(*await asyncio.open_connection(sock=channel))

    async def serve(self) -> None:
        """Receive results until the trainer closes the channel."""
        try:
            while True:
                result = RESULT.decode(await read_frame(self._reader))
                if (future := self._waiting.get(result.number)) is not None and not future.done():
                    future.set_result(result)
        except (EOFError, OSError):
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(GatewayError(503, "the trainer has ended"))

    def send(self, message: Call) -> None:
        """Send a message without an answer."""
        self._writer.write(frame(message))

    async def generate(self, input_ids: list[int], **options: Unpack[Options]) -> list[Sample]:
        """Completions of a prompt."""
        return (await self._call(Generate(next(self._numbers), input_ids, **options))).samples

    async def parse(self, path: str, body: dict[str, Any]) -> Any:
        """The answer of a server's parser."""
        return (await self._call(Parse(next(self._numbers), path, body))).parsed

    async def _call(self, call: Generate | Parse) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[call.number] = future
        try:
            self.send(call)
            result = await future
        except asyncio.CancelledError:
            self.send(Cancel(call.number))
            raise
        finally:
            del self._waiting[call.number]
        if result.kind:
            raise GatewayError(400 if result.kind == "refused" else 503, result.error)
        return result
