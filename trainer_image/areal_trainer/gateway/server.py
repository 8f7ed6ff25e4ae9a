"""The HTTP server: its socket and its bounds."""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp

CONNECTIONS_WAITING = 4096  # backlog of the listening socket
MAX_HEADER_BYTES = 64 << 10
IDLE_S = 30.0  # before a connection without a request is closed


def listen(host: str, port: int) -> socket.socket:
    """A listening socket."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=CONNECTIONS_WAITING)
    listener.set_inheritable(False)
    return listener


def make_server(app: ASGIApp) -> uvicorn.Server:
    """A server for ``app``; h11 bounds what it reads before a request is complete."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        lifespan="off",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
