"""Limits on connections to the operator's HTTP server: uvicorn waits for headers and bodies without a deadline."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)
MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_PEER = 64
MAX_HEADER_BYTES = 16_384
HEADER_S = 10.0  # from the connection to the end of the first request's headers
CONNECTION_S = 60.0  # lifetime of a connection, so that a slow second request cannot hold it either


class LimitedProtocol(H11Protocol):
    """Closes connections beyond the limits, those without a request in time, and those that are too old."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or close it at once."""
        super().connection_made(transport)
        self._timers = [
            self.loop.call_later(HEADER_S, self._close_without_request),
            self.loop.call_later(CONNECTION_S, transport.abort),
        ]
        peer = self.client[0] if self.client else None
        same_peer = sum(_peer(connection) == peer for connection in self.connections)
        if len(self.connections) > MAX_CONNECTIONS or same_peer > MAX_CONNECTIONS_PER_PEER:
            logger.debug("connection of %s closed: too many connections", peer)
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines."""
        for timer in self._timers:
            timer.cancel()
        super().connection_lost(exc)

    def _close_without_request(self) -> None:
        if self.cycle is None:
            self.transport.abort()


def _peer(connection: object) -> str | None:
    client: tuple[str, int] | None = getattr(connection, "client", None)
    return client[0] if client else None
