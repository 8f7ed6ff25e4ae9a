"""Serves published versions to servers that do not see the run directory: ``GET /v<N>/<file>`` with the API key."""

from __future__ import annotations

import hmac
import logging
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

logger = logging.getLogger(__name__)
MAX_DOWNLOADS = 256  # at a time
TIMEOUT_S = 60.0  # for a request, and between two parts of an answer
CHUNK = 4 << 20
_PATH = re.compile(r"/(v[0-9]{1,12})/([A-Za-z0-9_][A-Za-z0-9_.-]{0,254})")


class FileServer:
    """Listens on all interfaces from ``__enter__`` to ``__exit__``; answers each request in a thread."""

    def __init__(self, folder: Path, *, port: int, api_key: str | None) -> None:
        """``folder`` holds ``v<N>/``. ``port`` 0 takes a free one."""
        self._server = _Server(folder, port, None if api_key is None else f"Bearer {api_key}")
        self._thread = threading.Thread(target=self._server.serve_forever, name="weights", daemon=True)

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_DOWNLOADS

    def __init__(self, folder: Path, port: int, authorization: str | None) -> None:
        self.folder, self.authorization = folder, authorization
        self.places = threading.BoundedSemaphore(MAX_DOWNLOADS)
        self.address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        super().__init__(("", port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        """Send a file."""
        expected, given = self.server.authorization, self.headers.get("Authorization", "")
        if expected is not None and not hmac.compare_digest(given.encode(), expected.encode()):
            self.send_error(401)
            return
        found = _PATH.fullmatch(self.path)
        if found is None or not self.server.places.acquire(blocking=False):
            self.send_error(404 if found is None else 503)
            return
        try:
            self._send(self.server.folder / found[1] / found[2])
        finally:
            self.server.places.release()

    def _send(self, path: Path) -> None:
        try:
            file = path.open("rb")
        except OSError:
            self.send_error(404)
            return
        with file:
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            while chunk := file.read(CHUNK):
                self.wfile.write(chunk)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are logged at debug level only."""
        logger.debug(format, *arguments)
