"""What every route of the gateway needs: keys, bounded bodies, hang-ups and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from areal_trainer.gateway.errors import Dialect, GatewayError, error_body

T = TypeVar("T")
MAX_BODY_BYTES = 16 << 20
MAX_DISCARDED_BYTES = 4 * MAX_BODY_BYTES
BODY_TIMEOUT_S = 60.0
KEEP_ALIVE_S = 10.0  # between two comments in a stream whose completion is not finished
_JSON: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def key_of(request: Request) -> str:
    """The key in ``Authorization: Bearer`` (OpenAI) or ``x-api-key`` (Anthropic)."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        key = request.headers.get("x-api-key", "")
    if not key.strip():
        raise GatewayError(401, "the request has no key; send Authorization: Bearer KEY, or x-api-key: KEY")
    return key.strip()


async def json_object(request: Request) -> dict[str, Any]:
    """The request's body; raises ``GatewayError`` if it is too large, too slow, cut off or no JSON object."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_DISCARDED_BYTES:
                    break
                if size > MAX_BODY_BYTES:
                    parts.clear()  # a client reads the answer when it has sent its body
                else:
                    parts.append(part)
    except TimeoutError:
        raise GatewayError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise GatewayError(499, "the client hung up") from None
    if size > MAX_BODY_BYTES:
        raise GatewayError(413, f"the body has more than {MAX_BODY_BYTES} bytes")
    try:
        body = _JSON.decode(b"".join(parts) or b"{}")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise GatewayError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise GatewayError(400, f"the body is {type(body).__name__}, not a JSON object")
    return body


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled if the client hangs up."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GatewayError(499, "the client hung up")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def json_response(body: Any, *, status: int = 200) -> Response:
    """A JSON response. The connection is closed if the request's body was not read to its end."""
    headers = {"Connection": "close"} if status in (408, 413) else None
    return Response(msgspec.json.encode(body), status_code=status, headers=headers, media_type="application/json")


async def stream(
    request: Request, work: Coroutine[Any, Any, T], events: Callable[[T], Iterable[bytes]], *, protocol: Dialect
) -> Response:
    """The events of the result of ``work``, which starts at once. An early error is an ordinary response."""
    task = asyncio.create_task(unless_disconnected(request, work))
    done, _ = await asyncio.wait([task], timeout=KEEP_ALIVE_S)
    if done and (error := task.exception()) is not None:
        raise error

    async def body() -> AsyncIterator[bytes]:
        try:
            while not (await asyncio.wait([task], timeout=KEEP_ALIVE_S))[0]:
                yield b": keep-alive\n\n"
            for event in events(task.result()):
                yield event
        except GatewayError as error:
            name = "error" if protocol == "anthropic" else None
            yield server_sent_event(error_body(error, protocol), name=name)
        finally:
            task.cancel()

    return StreamingResponse(body(), media_type="text/event-stream")


def server_sent_event(data: Any, *, name: str | None = None) -> bytes:
    """One event of a stream."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"
