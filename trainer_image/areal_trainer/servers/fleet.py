"""The servers of a run: their states, and which one gets the next request.

A server is *unknown*, *current*, *behind* or *gone*; only current servers get requests. The ``Watcher`` probes servers
and updates those that hold other weights; ``WeightUpdater`` publishes new weights to the current ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from yarl import URL

from areal_api import stat_names
from areal_trainer.servers.client import ServerLostError
from areal_trainer.servers.idle import IdleTime

logger = logging.getLogger(__name__)

State = Literal["unknown", "current", "behind", "gone"]


MAX_CONVERSATIONS = 65536  # whose server is remembered
# A conversation leaves a server with more than LOAD_FACTOR times the load of the least loaded one plus LOAD_SLACK,
# in samples. The load is scaled to the capacity of the conversation's server.
LOAD_FACTOR, LOAD_SLACK = 1.5, 4


class NoServerError(Exception):
    """No server became current within the deadline."""


@dataclass(frozen=True)
class Target:
    """The weights that every server should hold."""

    version: int = 0
    path: Path | None = None  # directory to load them from; None if they exist only in the trainer's memory


@dataclass(frozen=True)
class ServerStatus:
    """A snapshot of one server's state."""

    address: str
    state: State
    version: int  # last version it is known to hold; -1 if unknown
    ready: bool  # gets requests
    reason: str  # why it is not current
    incarnation: int  # how often it has stopped being current


@dataclass(eq=False)
class Server:
    """One server, as the trainer knows it."""

    address: str
    state: State = "unknown"
    version: int = -1  # last version it is known to hold; -1 if unknown
    updating: bool = False  # between pause and continue
    load: int = 0  # samples in flight
    capacity: int = 1  # tokens that its KV cache holds
    idle: IdleTime = field(default_factory=IdleTime)
    incarnation: int = 0  # incremented whenever it stops being current; broadcast groups are valid for one incarnation
    silent_probes: int = 0  # consecutive probes without an answer
    reason: str = "not probed yet"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while its weights change
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # makes its watcher act now
    deadlines: set[asyncio.Timeout] = field(default_factory=set)  # of its requests in flight

    @property
    def generate_url(self) -> URL:
        """URL of /generate."""
        return self.url("/generate")

    def url(self, path: str) -> URL:
        """URL of a route."""
        return URL(f"http://{self.address}{path}")

    @property
    def ready(self) -> bool:
        """Whether it may get requests."""
        return self.state == "current" and not self.updating

    def add_load(self, samples: int) -> None:
        """Samples are in flight from now on, or no longer if negative."""
        self.count_time()
        self.load += samples

    def load_at(self, other: Server) -> float:
        """Samples with which ``other`` would have as much load for its capacity."""
        return self.load * other.capacity / self.capacity

    def count_time(self) -> None:
        """Count the time until now as idle or busy."""
        self.idle.advance(serving=self.state == "current", busy=self.load > 0)

    @property
    def status(self) -> ServerStatus:
        """A snapshot for other threads."""
        return ServerStatus(self.address, self.state, self.version, self.ready, self.reason, self.incarnation)

    def expire_requests(self) -> None:
        """Time out all requests in flight now, so that they are retried on other servers."""
        now = asyncio.get_running_loop().time()
        for deadline in self.deadlines:
            if not deadline.expired():
                deadline.reschedule(now)


class Fleet:
    """States of all servers, and dispatch of requests. Makes no HTTP requests. Use only on the engine's event loop."""

    def __init__(self, addresses: Iterable[str], *, target: Target, wait_s: float) -> None:
        """``wait_s``: longest wait for a current server."""
        self.servers = [Server(address) for address in addresses]
        self._target = target
        self._wait_s = wait_s
        self._changed = asyncio.Event()
        self._turn = 0
        self._homes: OrderedDict[str, Server] = OrderedDict()  # by conversation, the most recent last

    @property
    def target(self) -> Target:
        """The weights that every server should hold."""
        return self._target

    # Dispatch

    async def acquire(self, avoid: set[Server], conversation: str | None = None) -> Server:
        """The current server with the least load for its capacity, preferably outside ``avoid``. Waits for one.

        Requests of one ``conversation`` get the same server while it is current and not much more loaded than another:
        its prefix cache holds the conversation.
        """
        server = self._least_loaded(avoid)
        if server is None:
            await self.wait_until(lambda: self._least_loaded(avoid) is not None)
            server = self._least_loaded(avoid)
        assert server is not None
        return server if conversation is None else self._home(conversation, server, avoid)

    def _home(self, conversation: str, least_loaded: Server, avoid: set[Server]) -> Server:
        home = self._homes.pop(conversation, least_loaded)
        if not home.ready or home in avoid or home.load > LOAD_FACTOR * least_loaded.load_at(home) + LOAD_SLACK:
            home = least_loaded
        self._homes[conversation] = home
        if len(self._homes) > MAX_CONVERSATIONS:
            self._homes.popitem(last=False)
        return home

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds, checked after every change; ``NoServerError`` after the deadline."""
        try:
            async with asyncio.timeout(self._wait_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NoServerError(
                f"no server was ready within {self._wait_s:g} s (rollout.setup_timeout): {self.describe()}"
            ) from None

    def any_ready(self) -> bool:
        """Whether any server may get requests."""
        return any(server.ready for server in self.servers)

    def notify(self) -> None:
        """Make ``wait_until`` check its condition again."""
        self._changed.set()

    def describe(self) -> str:
        """Every server's state and its reason, for messages."""
        return "; ".join(
            f"{server.address or 'a server'} is {server.state}"
            + ("" if server.state == "current" else f" ({server.reason})")
            for server in self.servers
        )

    def statistics(self) -> dict[str, float]:
        """Number of current servers, and of servers that answer but hold other weights; what each server holds."""
        states = [server.state for server in self.servers]
        each: dict[str, float] = {}
        for index, server in enumerate(self.servers[: stat_names.MAX_SERVERS]):
            each[stat_names.server_version(index)] = float(server.version)
            each[stat_names.server_losses(index)] = float(server.incarnation)
        return {
            **each,
            stat_names.SERVERS_CURRENT: float(states.count("current")),
            stat_names.SERVERS_BEHIND: float(states.count("behind")),
        }

    def take_idle_share(self) -> float | None:
        """Share of the servers' time since the last call that they had no request, although they held the current
        weights or were receiving new ones; None if no server did."""
        for server in self.servers:
            server.count_time()
        times = [server.idle.take() for server in self.servers]
        serving_s = sum(serving for serving, _ in times)
        return sum(idle for _, idle in times) / serving_s if serving_s > 0 else None

    # State changes

    def set_target(self, target: Target) -> None:
        """Set the weights that all servers should hold. Servers that are updating keep their state."""
        if target.version != self._target.version:
            self._homes.clear()  # new weights empty the prefix caches
        self._target = target
        for server in self.servers:
            if not server.updating and server.version != target.version:
                if server.state == "current":
                    self._set_state(server, "behind", f"it holds v{server.version}")
                server.wake.set()

    def mark_gone(self, server: Server, error: Exception) -> None:
        """Its connection failed, or it is not ready: no requests until a probe succeeds."""
        self._set_state(server, "gone", str(error))

    def mark_behind(self, server: Server, error: Exception) -> None:
        """It answers, but could not be brought to the target."""
        self._set_state(server, "behind", str(error))

    def mark_stale(self, server: Server, error: Exception) -> None:
        """It holds unknown weights: it has restarted, or an update failed half-way."""
        server.version = -1
        self._set_state(server, "behind", str(error))

    def move(self, server: Server, address: str) -> None:
        """It has started elsewhere: its requests in flight are retried, and its watcher brings the new process up."""
        old, server.address = server.address, address
        server.version = -1
        server.silent_probes = 0
        self._set_state(server, "gone", f"it has moved from {old} to {address}" if address else "it runs nowhere")
        server.expire_requests()
        server.wake.set()

    def begin_update(self, target: Target) -> list[Server]:
        """Set the target and reserve the current servers for its update; each needs ``finish_update``."""
        servers = [server for server in self.servers if server.state == "current"]
        for server in servers:
            server.updating = True
        self.set_target(target)
        return servers

    def finish_update(self, server: Server, error: BaseException | None) -> None:
        """Set the server's state after an attempt to bring it to the target."""
        server.updating = False
        if error is None:
            if server.version == self.target.version:
                self._set_state(server, "current")
            else:
                self._set_state(server, "behind", f"it holds v{server.version}")
        elif isinstance(error, ServerLostError):
            self._set_state(server, "gone", str(error))
        else:
            server.version = -1
            self._set_state(server, "behind", str(error))

    def _set_state(self, server: Server, state: State, reason: str = "") -> None:
        if state != server.state:
            if server.state == "current":
                server.incarnation += 1
                server.wake.set()
            level = logging.INFO if state == "current" or server.state == "unknown" else logging.WARNING
            logger.log(
                level, "server %s: %s → %s%s", server.address, server.state, state, f": {reason}" if reason else ""
            )
        server.count_time()
        server.state, server.reason = state, reason
        self.notify()

    def _least_loaded(self, avoid: set[Server]) -> Server | None:
        ready = [server for server in self.servers if server.state == "current" and not server.updating]
        if len(ready) > 1:
            others = [server for server in ready if server not in avoid] if avoid else ready
            self._turn += 1  # equally loaded servers take turns
            count = len(others)
            in_turn = (others[(self._turn + i) % count] for i in range(count))
            # With one more sample: of idle servers, the one with the largest capacity.
            return min(in_turn, key=lambda s: (s.load + 1) / s.capacity, default=ready[0])
        return ready[0] if ready else None
