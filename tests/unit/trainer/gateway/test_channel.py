"""Frames between gateway and trainer."""

from __future__ import annotations

import asyncio

import pytest

from areal_trainer.gateway.channel import (
    CALL,
    HEADER,
    MAX_FRAME_BYTES,
    RESULT,
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
from areal_trainer.routing import EncodedExperts
from areal_trainer.servers.generation import TokenLogprob

CALLS: list[Call] = [
    Generate(1, [5, 6], 2, 9, ["."], evaluation=True, session="s", json_schema="{}", top_logprobs=3),
    Parse(2, "/parse_function_call", {"text": "é", "tools": []}),
    Cancel(1),
    Listening(8400),
    Counted({"calls": 3}),
]
RESULTS = [
    Result(
        1, samples=[Sample([7], [-0.1], [4], "stop", [[TokenLogprob(-0.1, 7)]], EncodedExperts(b"\x00\x01", 1, 2, 1))]
    ),
    Result(2, parsed={"normal_text": "", "calls": []}),
    Result(3, kind="refused", error="too long"),
]


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_messages_arrive_as_they_were_sent_one_by_one() -> None:
    reader = reader_of(b"".join(map(frame, [*CALLS, *RESULTS])))
    assert [CALL.decode(await read_frame(reader)) for _ in CALLS] == CALLS
    assert [RESULT.decode(await read_frame(reader)) for _ in RESULTS] == RESULTS
    with pytest.raises(EOFError):
        await read_frame(reader)


@pytest.mark.parametrize("cut", [2, HEADER.size, HEADER.size + 1])
async def test_a_frame_that_is_cut_off_is_the_end_of_the_channel(cut: int) -> None:
    with pytest.raises(EOFError):
        await read_frame(reader_of(frame(Cancel(1))[:cut]))


async def test_a_frame_beyond_the_bound_is_not_read() -> None:
    with pytest.raises(AssertionError):
        await read_frame(reader_of(HEADER.pack(MAX_FRAME_BYTES + 1)))
