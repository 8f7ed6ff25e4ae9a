"""The inference servers of a run: started together, watched, restarted when they die."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from areal_api.time_limits import HEALTH_PERIOD_S, HEALTH_TIMEOUT_S
from areal_launcher.core.health import HealthCheck, responds
from areal_launcher.core.place import Place, Process, ProcessSpec, kill_all
from areal_launcher.errors import RunError

MAX_RESTARTS = 5  # consecutive; the count restarts after a server has run for STABLE_S
STABLE_S = 600.0
FIRST_BACKOFF_S = 1.0
READY_TIMEOUT_S = 1.0  # unlike /health, /ready answers immediately

State = Literal["starting", "ready", "backoff", "lost"]


@dataclass(frozen=True)
class ServerLimits:
    """Time limits of a server process."""

    startup_s: float  # until it is ready
    unhealthy_s: float  # of failing health checks

    @property
    def period_s(self) -> float:
        """Time between two health checks."""
        return min(HEALTH_PERIOD_S, self.unhealthy_s / 2)

    @property
    def health_failures(self) -> int:
        """Consecutive failed health checks after which it is restarted."""
        return max(1, math.ceil(self.unhealthy_s / self.period_s))


class Server:
    """One server across its restarts. ``notify`` prints a message to the user."""

    def __init__(self, place: Place, spec: ProcessSpec, *, limits: ServerLimits, notify: Callable[[str], None]) -> None:
        self._place = place
        self.spec = spec
        self.restarts = 0
        self._consecutive_deaths = 0
        self.was_ready = False
        self._limits = limits
        self._health: HealthCheck | None = None  # while ready
        self._notify = notify
        self._start_at = 0.0
        self.state: State = "starting"
        self.process = place.start(spec)

    def tick(self, *, any_served: bool) -> None:
        """Check the process and advance the state. Raises ``RunError`` if the first start failed, not for a lost node.

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
        elif self.state == "starting" and self.address is not None and self._is_ready(self.address):
            self.state, self.was_ready = "ready", True
            self._health = HealthCheck(self.address, period_s=self._limits.period_s, timeout_s=HEALTH_TIMEOUT_S)
            self._notify(f"{self.spec.name} ready after {self.process.seconds:.0f} s")
        elif self.state == "starting" and self.process.seconds > self._limits.startup_s:
            kill_all([self.process])
            reason = f"not ready within servers.startupSeconds = {self._limits.startup_s:g} s"
            self._on_death(reason, any_served=any_served)
        elif self._health is not None and self._health.failures >= self._limits.health_failures:
            kill_all([self.process])
            reason = f"its health checks failed for {self._limits.unhealthy_s:g} s, rollout.weight_load_timeout"
            self._on_death(reason, any_served=any_served)

    def _is_ready(self, address: str) -> bool:
        return responds(address, "/ready", timeout_s=READY_TIMEOUT_S)

    @property
    def address(self) -> str | None:
        """``host:port`` of the current process; None until its node has chosen it."""
        return self.process.address

    def _on_death(self, reason: str, *, any_served: bool) -> None:
        if self._place.ending() is not None:
            return
        name = self.spec.name
        if self._health is not None:
            self._health.stop()
            self._health = None
        if not any_served and not self.process.lost:
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
        self,
        place: Place,
        specs: Sequence[ProcessSpec],
        *,
        limits: ServerLimits,
        notify: Callable[[str], None],
        replicas: int | None = None,
        drain_s: float = 0.0,
    ) -> None:
        """``specs``: of all servers that may run, of which the first ``replicas`` start (None: all)."""
        self._place = place
        self._specs = specs
        self._limits = limits
        self._notify = notify
        self._drain_s = drain_s
        self._replicas = len(specs) if replicas is None else replicas
        self._draining: list[tuple[Process, float]] = []  # with the time when it is killed
        self.servers = [self._new(spec) for spec in specs[: self._replicas]]

    def scale(self, replicas: int) -> None:
        """Set the number of servers. Surplus servers finish their requests and exit; new ones start with ``tick``."""
        if not 1 <= replicas <= len(self._specs):
            self._notify(f"cannot scale to {replicas} servers: the run was started with at most {len(self._specs)}")
            return
        if replicas == self._replicas:
            return
        self._notify(f"scaling from {self._replicas} to {replicas} servers")
        self._replicas = replicas
        for server in self.servers[replicas:]:
            server.process.terminate()
            self._draining.append((server.process, time.monotonic() + self._drain_s))
        del self.servers[replicas:]

    def tick(self) -> None:
        """Check all servers. Raises ``RunError`` if one failed before any was ready, or if all are lost."""
        self._drain()
        self._start_missing()
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
    def addresses(self) -> list[str]:
        """``host:port`` of every server that may run; an empty text where it is unknown."""
        known = [server.address or "" for server in self.servers]
        return known + [""] * (len(self._specs) - len(known))

    @property
    def placed(self) -> bool:
        """Whether every server has an address."""
        return all(server.address is not None for server in self.servers)

    def _new(self, spec: ProcessSpec) -> Server:
        return Server(self._place, spec, limits=self._limits, notify=self._notify)

    def _drain(self) -> None:
        for process, kill_at in self._draining:
            if time.monotonic() > kill_at:
                process.kill()
        self._draining = [(process, kill_at) for process, kill_at in self._draining if process.poll() is None]

    def _start_missing(self) -> None:
        draining = {process.spec.name for process, _ in self._draining}
        for spec in self._specs[len(self.servers) : self._replicas]:
            if spec.name in draining:
                return
            try:
                self.servers.append(self._new(spec))
            except RunError as error:  # the place has no room for it; the run continues with the servers it has
                self._notify(f"{spec.name} was not started: {error}")
                self._replicas = len(self.servers)
                return
