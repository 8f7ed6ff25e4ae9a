"""The inference servers of a run: started together, watched, restarted when they die."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import Literal

from areal_launcher.core.place import Place, ProcessSpec, kill_all
from areal_launcher.errors import RunError

MAX_RESTARTS = 5  # consecutive; the count restarts after a server has run for STABLE_S
STABLE_S = 600.0
FIRST_BACKOFF_S = 1.0
READY_TIMEOUT_S = 1.0  # unlike /health, /ready answers immediately

State = Literal["starting", "ready", "backoff", "lost"]


def is_ready(address: str) -> bool:
    """Whether the server accepts requests, within ``READY_TIMEOUT_S``. Ignores proxies: the server is near."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + READY_TIMEOUT_S
    request = f"GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    response = b""
    try:
        with socket.create_connection((host, int(port)), timeout=READY_TIMEOUT_S) as connection:
            connection.sendall(request.encode())
            while len(response) < len(b"HTTP/1.1 200"):
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                if not (data := connection.recv(1024)):
                    break
                response += data
    except OSError:
        return False
    return re.match(rb"HTTP/1\.[01] 200\b", response) is not None


class Server:
    """One server across its restarts. ``notify`` prints a message to the user."""

    def __init__(
        self, place: Place, spec: ProcessSpec, *, setup_timeout_s: float, notify: Callable[[str], None]
    ) -> None:
        self._place = place
        self.spec = spec
        self.restarts = 0
        self._consecutive_deaths = 0
        self.was_ready = False
        self._setup_timeout_s = setup_timeout_s
        self._notify = notify
        self._start_at = 0.0
        self.state: State = "starting"
        self.process = place.start(spec)

    def tick(self, *, any_served: bool) -> None:
        """Check the process and advance the state. Raises ``RunError`` if the first start failed.

        ``any_served``: some server of this run has been ready before, so a failed first start is retried.
        """
        if self.state == "lost":
            return
        if self.state == "backoff":
            if time.monotonic() >= self._start_at:
                self.restarts += 1
                self.state, self.process = "starting", self._place.start(self.spec)
            return
        status = self.process.poll()
        if status is not None:
            self._on_death(f"exit status {status}", any_served=any_served)
        elif self.state == "starting" and self.address is not None and is_ready(self.address):
            self.state, self.was_ready = "ready", True
            self._notify(f"{self.spec.name} ready after {self.process.seconds:.0f} s")
        elif self.state == "starting" and self.process.seconds > self._setup_timeout_s:
            kill_all([self.process])
            reason = f"not ready within rollout.setup_timeout = {self._setup_timeout_s:g} s"
            self._on_death(reason, any_served=any_served)

    @property
    def address(self) -> str | None:
        """``host:port`` of the current process; None until its node has chosen it."""
        return self.process.address

    def _on_death(self, reason: str, *, any_served: bool) -> None:
        name = self.spec.name
        if not any_served:
            raise RunError(f"{name} failed to start: {reason}", log=self.spec.log, lines=self.process.tail())
        self._consecutive_deaths = 1 if self.process.seconds > STABLE_S else self._consecutive_deaths + 1
        if self._consecutive_deaths > MAX_RESTARTS:
            self.state = "lost"
            self._notify(f"{name} died ({reason}), giving up after {MAX_RESTARTS} restarts; see {self.spec.log}")
            return
        delay_s = FIRST_BACKOFF_S * 2 ** (self._consecutive_deaths - 1)
        self.state, self._start_at = "backoff", time.monotonic() + delay_s
        self._notify(
            f"{name} died ({reason}); restart {self._consecutive_deaths} of {MAX_RESTARTS} in {delay_s:.0f} s; "
            f"see {self.spec.log}"
        )


class ServerFleet:
    """All servers of a run."""

    def __init__(
        self, place: Place, specs: Sequence[ProcessSpec], *, setup_timeout_s: float, notify: Callable[[str], None]
    ) -> None:
        self.servers = [Server(place, spec, setup_timeout_s=setup_timeout_s, notify=notify) for spec in specs]

    def tick(self) -> None:
        """Check all servers. Raises ``RunError`` if one failed before any was ready, or if all are lost."""
        for server in self.servers:
            server.tick(any_served=any(other.was_ready for other in self.servers))
        if self.servers and all(server.state == "lost" for server in self.servers):
            last = self.servers[-1]
            raise RunError("no server is left to restart", log=last.spec.log, lines=last.process.tail())

    @property
    def ready(self) -> int:
        """Number of servers that accept requests."""
        return sum(server.state == "ready" for server in self.servers)

    @property
    def addresses(self) -> list[str] | None:
        """``host:port`` of every server; None until all are known."""
        known = [server.address for server in self.servers]
        return [address for address in known if address is not None] if None not in known else None
