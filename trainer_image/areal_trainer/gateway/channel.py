"""The messages between gateway and trainer, and how they are framed on the socket that connects the two processes."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, TypedDict

import msgspec

from areal_trainer.routing import EncodedExperts
from areal_trainer.servers.generation import StopReason, TokenLogprob

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 1 << 30


class Generate(msgspec.Struct, tag="generate"):
    """``n`` completions of a prompt. Everything else about sampling is the trainer's ``gconfig``."""

    number: int
    input_ids: list[int]
    n: int
    max_new_tokens: int
    stop: list[str]
    evaluation: bool  # sample by eval_gconfig
    session: str
    json_schema: str | None = None
    top_logprobs: int = 0


class Options(TypedDict):
    """The fields of ``Generate`` but for number and prompt."""

    n: int
    max_new_tokens: int
    stop: list[str]
    evaluation: bool
    session: str
    json_schema: str | None
    top_logprobs: int


class Parse(msgspec.Struct, tag="parse"):
    """A request to one of the servers' parsers."""

    number: int
    path: str
    body: dict[str, Any]


class Cancel(msgspec.Struct, tag="cancel"):
    """The answer to call ``number`` is no longer wanted."""

    number: int


class Listening(msgspec.Struct, tag="listening"):
    """The gateway accepts connections on ``port``."""

    port: int


class Counted(msgspec.Struct, tag="counted"):
    """Counts of sessions and calls since the process started, by their name in ``sessions.Counters``."""

    counts: dict[str, int]


class Sample(msgspec.Struct):
    """One completion; the lists have equal lengths."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    stop_reason: StopReason
    top_logprobs: list[list[TokenLogprob]] = []  # of each token; empty unless requested
    experts: EncodedExperts | None = None  # of the tokens of prompt and completion but the last


class Result(msgspec.Struct):
    """The trainer's answer to call ``number``; ``error`` and its ``kind`` are set if it failed."""

    number: int
    samples: list[Sample] = []
    parsed: Any = None
    kind: str = ""  # "refused": the request is at fault, "failed": the servers are
    error: str = ""


Call = Generate | Parse | Cancel | Listening | Counted
CALL = msgspec.msgpack.Decoder(Call)
RESULT = msgspec.msgpack.Decoder(Result)
_ENCODER = msgspec.msgpack.Encoder()


def frame(message: Call | Result) -> bytes:
    """The message with its length in front."""
    body = _ENCODER.encode(message)
    return HEADER.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message; raises ``EOFError`` when the other process has closed the socket."""
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    assert length <= MAX_FRAME_BYTES
    return await reader.readexactly(length)
