"""Health checks of a local server, the equivalent of a pod's probes."""

from __future__ import annotations

import re
import socket
import threading
import time


def responds(address: str, path: str, *, timeout_s: float) -> bool:
    """Whether GET ``path`` is answered with status 200 within ``timeout_s``. Ignores proxies: the server is local."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_s
    request = f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    response = b""
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
            connection.sendall(request.encode())
            while len(response) < len(b"HTTP/1.1 200"):
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                if not (data := connection.recv(1024)):
                    break
                response += data
    except OSError:
        return False
    return re.match(rb"HTTP/1\.[01] 200\b", response) is not None


class HealthCheck:
    """Checks /health once per period in a background thread, until ``stop``.

    /health generates a token, so it also fails for a server whose scheduler hangs. Failures are counted, not timed:
    a launcher that was itself suspended does not blame its servers.
    """

    def __init__(self, address: str, *, period_s: float, timeout_s: float) -> None:
        self.failures = 0
        """Consecutive failed checks."""
        self._address = address
        self._period_s = period_s
        self._timeout_s = min(timeout_s, period_s)
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name=f"health of {address}", daemon=True).start()

    def stop(self) -> None:
        """End the checks; one that is under way is abandoned."""
        self._stopped.set()

    def _run(self) -> None:
        next_at = time.monotonic() + self._period_s
        while not self._stopped.wait(max(0.0, next_at - time.monotonic())):
            next_at = time.monotonic() + self._period_s
            healthy = responds(self._address, "/health", timeout_s=self._timeout_s)
            self.failures = 0 if healthy else self.failures + 1
