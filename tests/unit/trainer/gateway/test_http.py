"""Keys in headers, and streams that stay open while a completion is generated."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request

from areal_trainer.gateway import http
from areal_trainer.gateway.errors import Dialect, GatewayError


def request_of(*headers: tuple[str, str]) -> Request:
    async def receive() -> Any:
        await asyncio.Event().wait()

    encoded = [(name.encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "headers": encoded, "method": "POST", "path": "/"}, receive)


def test_a_key_is_found_in_either_header() -> None:
    assert http.key_of(request_of(("authorization", "Bearer sk-1"))) == "sk-1"
    assert http.key_of(request_of(("x-api-key", " sk-2 "))) == "sk-2"
    assert http.key_of(request_of(("authorization", "Basic abc"), ("x-api-key", "sk-3"))) == "sk-3"
    for headers in ([], [("authorization", "Bearer ")], [("authorization", "sk-1")]):
        with pytest.raises(GatewayError, match="has no key"):
            http.key_of(request_of(*headers))


async def parts(response: Any) -> list[bytes]:
    return [part async for part in response.body_iterator]


async def test_a_slow_stream_is_kept_open_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEEP_ALIVE_S", 0.01)
    done = asyncio.Event()

    async def work() -> str:
        await done.wait()
        return "x"

    response = await http.stream(request_of(), work(), lambda result: [result.encode()], protocol="openai")
    iterator = response.body_iterator  # type: ignore[attr-defined]
    assert await anext(iterator) == b": keep-alive\n\n"
    done.set()
    assert [part async for part in iterator][-1] == b"x"


@pytest.mark.parametrize(("protocol", "head"), [("openai", b"data: "), ("anthropic", b"event: error\ndata: ")])
async def test_an_error_in_a_stream_is_an_event_of_the_protocol(
    protocol: Dialect, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "KEEP_ALIVE_S", 0.01)
    fail = asyncio.Event()

    async def work() -> str:
        await fail.wait()
        raise GatewayError(503, "no server")

    response = await http.stream(request_of(), work(), lambda _: [], protocol=protocol)
    fail.set()
    last = (await parts(response))[-1]
    assert last.startswith(head)
    assert b"no server" in last


async def test_an_early_error_is_an_ordinary_response() -> None:
    async def work() -> str:
        raise GatewayError(400, "too long")

    with pytest.raises(GatewayError, match="too long"):
        await http.stream(request_of(), work(), lambda _: [], protocol="openai")
