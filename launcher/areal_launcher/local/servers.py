"""The inference servers of a local run: started together, watched, started again when they die."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from areal_launcher.errors import RunError
from areal_launcher.local.processes import Supervised, kill_together

MAX_RESTARTS = 5  # deaths in a row; a server that lived LONG_LIFE_S since its last start begins to count anew
LONG_LIFE_S = 600.0
FIRST_BACKOFF_S = 1.0
READY_TIMEOUT_S = 1.0  # /ready answers at once, unlike /health

State = Literal["starting", "ready", "backoff", "lost"]


@dataclass(frozen=True)
class ServerSpec:
    """How one server is started, and where it will answer."""

    name: str
    host: str
    port: int
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"


def answers(address: str) -> bool:
    """Whether a server takes requests now."""
    try:
        with urllib.request.urlopen(f"http://{address}/ready", timeout=READY_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


class Server:
    """One server through its lives."""

    def __init__(self, spec: ServerSpec, *, setup_timeout_s: float, say: Callable[[str], None]) -> None:
        self.spec = spec
        self.restarts = 0
        self._deaths_in_a_row = 0
        self.was_ready = False
        self._setup_timeout_s = setup_timeout_s
        self._say = say
        self._start_at = 0.0
        self.state: State = "starting"
        self.process = self._start()

    def tick(self, *, proven: bool) -> None:
        """Take note of what happened. ``RunError`` when the first start failed.

        ``proven``: a server of this run has served, so that a death in the first start is an accident like any other.
        """
        if self.state == "lost":
            return
        if self.state == "backoff":
            if time.monotonic() >= self._start_at:
                self.restarts += 1
                self.state, self.process = "starting", self._start()
            return
        status = self.process.poll()
        if status is not None:
            self._died(f"exit status {status}", proven=proven)
        elif self.state == "starting" and answers(self.spec.address):
            self.state, self.was_ready = "ready", True
            self._say(f"{self.spec.name} ready after {self.process.seconds:.0f} s")
        elif self.state == "starting" and self.process.seconds > self._setup_timeout_s:
            kill_together([self.process])
            self._died(f"not ready within rollout.setup_timeout = {self._setup_timeout_s:g} s", proven=proven)

    def _start(self) -> Supervised:
        spec = self.spec
        return Supervised(spec.name, spec.argv, env=spec.env, log=spec.log)

    def _died(self, reason: str, *, proven: bool) -> None:
        name = self.spec.name
        if not proven:
            raise RunError(f"{name} failed to start: {reason}", log=self.spec.log, lines=self.process.tail())
        self._deaths_in_a_row = 1 if self.process.seconds > LONG_LIFE_S else self._deaths_in_a_row + 1
        if self._deaths_in_a_row > MAX_RESTARTS:
            self.state = "lost"
            self._say(f"{name} died ({reason}) and is given up after {MAX_RESTARTS} restarts; see {self.spec.log}")
            return
        pause_s = FIRST_BACKOFF_S * 2 ** (self._deaths_in_a_row - 1)
        self.state, self._start_at = "backoff", time.monotonic() + pause_s
        self._say(
            f"{name} died ({reason}); restart {self._deaths_in_a_row} of {MAX_RESTARTS} in {pause_s:.0f} s; "
            f"see {self.spec.log}"
        )


class Fleet:
    """All servers of a run."""

    def __init__(self, specs: Sequence[ServerSpec], *, setup_timeout_s: float, say: Callable[[str], None]) -> None:
        self.servers: list[Server] = []
        try:
            for spec in specs:
                self.servers.append(Server(spec, setup_timeout_s=setup_timeout_s, say=say))
        except BaseException:
            self.kill()
            raise

    def tick(self) -> None:
        """Take note of what happened; ``RunError`` when none ever served and one failed, or when none is left."""
        for server in self.servers:
            server.tick(proven=any(other.was_ready for other in self.servers))
        if self.servers and all(server.state == "lost" for server in self.servers):
            last = self.servers[-1]
            raise RunError("every server was given up", log=last.spec.log, lines=last.process.tail())

    @property
    def ready(self) -> int:
        """Servers that take requests."""
        return sum(server.state == "ready" for server in self.servers)

    @property
    def processes(self) -> list[Supervised]:
        """The newest process of every server."""
        return [server.process for server in self.servers]

    def kill(self) -> None:
        """Kill all servers and wait until they are gone."""
        kill_together(self.processes)
