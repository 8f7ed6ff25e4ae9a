"""The channel to the trainer: answers find their calls, and nobody waits for a trainer that has ended."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import pytest

from areal_trainer.gateway.channel import CALL, Cancel, Generate, Parse, Result, Sample, frame, read_frame
from areal_trainer.gateway.engine_client import EngineClient
from areal_trainer.gateway.errors import GatewayError

OPTIONS: Any = {
    "n": 1,
    "max_new_tokens": 5,
    "stop": [],
    "evaluation": False,
    "session": "s",
    "json_schema": None,
    "top_logprobs": 0,
}


@dataclass
class Trainer:
    """The other end of the channel."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def next(self) -> Any:
        return CALL.decode(await read_frame(self.reader))


async def connected() -> tuple[EngineClient, Trainer, asyncio.Task[None]]:
    ours, theirs = socket.socketpair()
    trainer = Trainer(*await asyncio.open_connection(sock=theirs))
    client = await EngineClient.connect(ours)
    return client, trainer, asyncio.create_task(client.serve())


async def test_answers_in_any_order_find_their_calls() -> None:
    client, trainer, serving = await connected()
    calls = [asyncio.create_task(client.generate([number], **OPTIONS)) for number in range(3)]
    received = [await trainer.next() for _ in calls]
    assert all(isinstance(call, Generate) for call in received)
    for call in reversed(received):
        sample = Sample([call.input_ids[0] + 10], [0.0], [1], "stop")
        trainer.writer.write(frame(Result(call.number, samples=[sample])))
    assert [[sample.tokens for sample in await call] for call in calls] == [[[10]], [[11]], [[12]]]
    serving.cancel()


@pytest.mark.parametrize(("kind", "status"), [("refused", 400), ("failed", 503)])
async def test_an_error_of_the_trainer_has_a_status(kind: str, status: int) -> None:
    client, trainer, serving = await connected()
    call = asyncio.create_task(client.parse("/parse_function_call", {"text": "x"}))
    request = await trainer.next()
    assert isinstance(request, Parse)
    trainer.writer.write(frame(Result(request.number, kind=kind, error="why")))
    with pytest.raises(GatewayError, match="why") as caught:
        await call
    assert caught.value.status == status
    serving.cancel()


async def test_a_cancelled_call_is_cancelled_in_the_trainer() -> None:
    client, trainer, serving = await connected()
    call = asyncio.create_task(client.generate([1], **OPTIONS))
    request = await trainer.next()
    call.cancel()
    cancelled = await trainer.next()
    assert isinstance(cancelled, Cancel)
    assert cancelled.number == request.number
    trainer.writer.write(frame(Result(request.number)))  # an answer that comes too late is dropped
    second = asyncio.create_task(client.parse("/x", {}))
    trainer.writer.write(frame(Result((await trainer.next()).number, parsed=5)))
    assert await second == 5
    serving.cancel()


async def test_calls_fail_when_the_trainer_has_ended() -> None:
    client, trainer, _ = await connected()
    call = asyncio.create_task(client.generate([1], **OPTIONS))
    await trainer.next()
    trainer.writer.close()
    with pytest.raises(GatewayError, match="the trainer has ended"):
        await call
