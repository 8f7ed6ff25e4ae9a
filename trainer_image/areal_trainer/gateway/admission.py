"""Bounds of what requests in progress may occupy, whoever sends them."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from areal_trainer.gateway.errors import GatewayError, error_body, protocol_of
from areal_trainer.gateway.http import json_response

MAX_REQUESTS = 8192  # in progress
MAX_BYTES = 1 << 30  # of the bodies of requests in progress


class Admission:
    """ASGI middleware that answers 429 instead of holding more requests, or more bytes of their bodies."""

    def __init__(self, app: ASGIApp, *, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self._app = app
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._requests = 0
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._requests >= self._max_requests:
            error = GatewayError(429, f"{self._requests} requests are in progress; try again later")
            response = json_response(error_body(error, protocol_of(scope["path"])), status=error.status)
            await response(scope, receive, send)
            return
        self._requests += 1
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            part = len(message.get("body", b""))
            if self._bytes + part > self._max_bytes:
                raise GatewayError(429, f"requests in progress hold {self._bytes} bytes; try again later")
            size += part
            self._bytes += part
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._requests -= 1
            self._bytes -= size
