"""What HTTP servers in a cluster share: a socket, and limits, because uvicorn waits for headers without a deadline.

Imports uvicorn, which only processes with such a server need.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from areal_api.errors import describe

logger = logging.getLogger(__name__)
MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_PEER = 64
MAX_HEADER_BYTES = 16_384
HEADER_S = 10.0  # from the connection to the end of the first request's headers


class LimitedProtocol(H11Protocol):
    """Closes connections beyond the limits, those without a request in time, and those that are too old."""

    per_peer = MAX_CONNECTIONS_PER_PEER
    connection_s = 60.0  # lifetime of a connection, so that a slow second request cannot hold it either

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or close it at once."""
        super().connection_made(transport)
        self._timers = [
            self.loop.call_later(HEADER_S, self._close_without_request),
            self.loop.call_later(self.connection_s, transport.abort),
        ]
        peer = self.client[0] if self.client else None
        same_peer = sum(_peer(connection) == peer for connection in self.connections)
        if len(self.connections) > MAX_CONNECTIONS or same_peer > self.per_peer:
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


def listening_socket(port: int) -> socket.socket:
    """A socket that listens on all addresses of both IP versions, or of the only one that the machine has."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        except OSError as error:
            logger.info("IPv6 is not available: %s", describe(error))
    return socket.create_server(("", port), backlog=1024)
