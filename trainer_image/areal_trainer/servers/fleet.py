"""The servers of a run: which of them hold the weights that are in force, and which gets the next request.

A server is *unknown → current → behind → gone*, and only a current one gets requests. A watcher each asks the server
what it holds, brings it up to date when that is something else, and looks for it again when it is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from yarl import URL

from areal_api import names, stat_names
from areal_trainer.servers.client import Client, ServerBusyError, ServerError, ServerLostError, ServerRefusedError
from areal_trainer.weights.disk import verify_published

logger = logging.getLogger(__name__)

State = Literal["unknown", "current", "behind", "gone"]
PAUSE: dict[str, Any] = {"mode": "retract"}  # in_place would go on with what the old weights left in the cache
BASE_WEIGHTS = "default"  # what SGLang says of the weights that it was started with
PROBE_TIMEOUT_S = 10.0
PROBE_PERIOD_S = 5.0  # between two looks at a server that is current
PROBE_FAILURES = 3  # in a row, before a server that takes connections but does not answer is gone
SHORTEST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 1.0  # a server that has become ready is not left waiting for longer


class NoServerError(Exception):
    """No server was current for as long as the engine waits."""


@dataclass(frozen=True)
class Target:
    """The weights that every server should hold."""

    version: int = 0
    path: Path | None = None  # where a server that holds something else loads them from


@dataclass(eq=False)
class Server:
    """One server, as the engine knows it."""

    address: str
    state: State = "unknown"
    version: int = -1  # that this engine has seen it hold, or has loaded into it
    updating: bool = False  # between pause and continue
    load: int = 0  # samples that it is working on
    incarnation: int = 0  # counts how often it stopped being current: a broadcast group outlives no such change
    silent_probes: int = 0
    reason: str = "not asked yet"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by whoever changes its weights
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # sends its watcher to look now
    deadlines: set[asyncio.Timeout] = field(default_factory=set)  # of the requests under way

    def url(self, path: str) -> URL:
        """Address of a route."""
        return URL(f"http://{self.address}{path}")

    def __post_init__(self) -> None:
        self.generate_url = self.url("/generate")

    @property
    def ready(self) -> bool:
        """Whether it may get requests."""
        return self.state == "current" and not self.updating


class Fleet:
    """All servers, their states and their watchers. Lives on the engine's event loop."""

    def __init__(
        self, addresses: Iterable[str], client: Client, *, target: Target, wait_s: float, load_timeout_s: float
    ) -> None:
        """``wait_s``: longest wait for a current server. ``load_timeout_s``: longest time of loading weights."""
        self.servers = [Server(address) for address in addresses]
        self.client = client
        self.target = target
        self.load_timeout_s = load_timeout_s
        self.broadcast_members: frozenset[tuple[str, int]] = frozenset()  # (address, incarnation)
        self._wait_s = wait_s
        self._changed = asyncio.Event()
        self._first_look: set[Server] = set(self.servers)
        self._turn = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Watch all servers; returns when each has been asked once and one is current, else ``NoServerError``."""
        self._tasks = [asyncio.create_task(self._watch(server), name=server.address) for server in self.servers]
        await self._until(lambda: not self._first_look and any(server.ready for server in self.servers))

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Requests

    async def acquire(self, avoid: set[Server]) -> Server:
        """The current server with the least work, outside ``avoid`` where there is another. Waits for one."""
        if (server := self._least_loaded(avoid)) is not None:
            return server
        await self._until(lambda: self._least_loaded(avoid) is not None)
        server = self._least_loaded(avoid)
        assert server is not None
        return server

    def lost(self, server: Server, error: Exception) -> None:
        """A connection to it failed: it is gone until its watcher, who looks at once, hears from it."""
        self._set(server, "gone", str(error))

    def wrong(self, server: Server, error: Exception) -> None:
        """It answered with other weights than it is known to hold: it restarted."""
        server.version = -1
        self._set(server, "behind", str(error))

    def aim(self, target: Target) -> None:
        """All servers should hold ``target`` from now on; those that are being updated to it are left to that."""
        self.target = target
        for server in self.servers:
            if not server.updating and server.version != target.version:
                if server.state == "current":
                    self._set(server, "behind", f"it holds v{server.version}")
                server.wake.set()

    def states(self) -> str:
        """For messages: every server with its state and why."""
        return "; ".join(
            f"{server.address} is {server.state}" + ("" if server.state == "current" else f" ({server.reason})")
            for server in self.servers
        )

    def statistics(self) -> dict[str, float]:
        """Servers that hold the current weights, and that answer but hold others; those that are gone are neither."""
        states = [server.state for server in self.servers]
        return {
            stat_names.SERVERS_CURRENT: float(states.count("current")),
            stat_names.SERVERS_BEHIND: float(states.count("behind")),
        }

    async def wait_for_one(self) -> None:
        """Wait until a server is current, else ``NoServerError``."""
        await self._until(lambda: any(server.ready for server in self.servers))

    def _least_loaded(self, avoid: set[Server]) -> Server | None:
        ready = [server for server in self.servers if server.state == "current" and not server.updating]
        if len(ready) > 1:
            others = [server for server in ready if server not in avoid] if avoid else ready
            self._turn += 1  # equal ones take turns
            count = len(others)
            return min((others[(self._turn + i) % count] for i in range(count)), key=lambda s: s.load, default=ready[0])
        return ready[0] if ready else None

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NoServerError(
                f"no server was ready within {self._wait_s:g} s (rollout.setup_timeout): {self.states()}"
            ) from None

    def notify(self) -> None:
        """Something changed that requests may wait for."""
        self._changed.set()

    def _set(self, server: Server, state: State, reason: str = "") -> None:
        if state != server.state:
            if server.state == "current":
                server.incarnation += 1
                server.wake.set()
            level = logging.INFO if state == "current" or server.state == "unknown" else logging.WARNING
            logger.log(
                level, "server %s: %s → %s%s", server.address, server.state, state, f": {reason}" if reason else ""
            )
        server.state, server.reason = state, reason
        self.notify()

    # Weights

    async def load_from_disk(self, server: Server, target: Target) -> None:
        """Pause, load, check what it says, continue. It goes on also when loading failed. Its lock is held."""
        assert target.path is not None
        await self.control(server, "/pause_generation", PAUSE)
        try:
            # What is no directory here is a name that the servers find at the hub.
            path = target.path.absolute() if target.path.exists() else target.path
            body = {"model_path": str(path), "weight_version": names.weight_version(target.version)}
            await self.control(server, "/update_weights_from_disk", body, timeout_s=self.load_timeout_s)
            await self.check_version(server, target)
        finally:
            await self.control(server, "/continue_generation", {})

    async def while_alive(self, server: Server, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``; ``ServerLostError`` once the server gives no sign of life, also where ``work`` would wait on.

        One that loads weights, or is paused, answers other requests at once; one that hangs would hold up all others.
        """
        working = asyncio.create_task(work)
        silent = 0
        try:
            while not (await asyncio.wait([working], timeout=0 if silent else PROBE_PERIOD_S))[0]:
                try:
                    await self._refuses_requests(server)
                    silent = 0
                except ServerLostError:
                    silent += 1
                    if silent == PROBE_FAILURES:
                        raise
            await working
        finally:
            while not working.done():  # what it would do at its end may wait for the server too
                working.cancel()
                await asyncio.wait([working], timeout=SHORTEST_BACKOFF_S)

    async def check_version(self, server: Server, target: Target) -> None:
        """Raise ``ServerRefusedError`` where the server does not say that it holds ``target``."""
        said = await self.held(server)
        if said != names.weight_version(target.version):
            raise ServerRefusedError(
                f"{server.address} says that it holds {said!r} after loading {names.weight_version(target.version)}"
            )
        server.version = target.version

    async def held(self, server: Server) -> str:
        """The weight version that the server says."""
        info = await self.client.get(server.url("/model_info"), timeout_s=PROBE_TIMEOUT_S)
        return str(info["weight_version"])

    async def control(self, server: Server, path: str, body: dict[str, Any], *, timeout_s: float = 60.0) -> Any:
        """POST an administrative request that may be repeated; once more where a kept-alive connection was closed."""
        try:
            return await self.client.post(server.url(path), body, timeout_s=timeout_s)
        except ServerLostError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            return await self.client.post(server.url(path), body, timeout_s=timeout_s)

    def settle(self, server: Server, error: BaseException | None) -> None:
        """After an attempt to bring ``server`` to the target: its state."""
        server.updating = False
        if error is None:
            if server.version == self.target.version:
                self._set(server, "current")
            else:
                self._set(server, "behind", f"it holds v{server.version}")
        elif isinstance(error, ServerLostError):
            self._set(server, "gone", str(error))
        else:
            server.version = -1
            self._set(server, "behind", str(error))

    # Watching

    async def _watch(self, server: Server) -> None:
        backoff_s = SHORTEST_BACKOFF_S
        while True:
            server.wake.clear()
            if server.ready:
                backoff_s = SHORTEST_BACKOFF_S
                if not await _woken(server.wake, PROBE_PERIOD_S):
                    await self._look(server)
                continue
            if not server.updating:
                await self._bring_up(server)
            self._first_look.discard(server)
            self.notify()
            if not server.ready:
                await _woken(server.wake, backoff_s)
                backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    async def _look(self, server: Server) -> None:
        """Ask a current server whether it still is; what it says counts only when nobody changes it meanwhile."""
        if server.lock.locked():
            return
        async with server.lock:
            if server.state != "current":
                return
            try:
                said = await self.held(server)
                ending = await self._refuses_requests(server)
            except ServerLostError as error:
                if self._given_up(server, error):
                    self.lost(server, error)
                return
            except ServerError as error:
                self.wrong(server, error)
                return
            server.silent_probes = 0
            if said != names.weight_version(server.version):
                self.wrong(server, ServerRefusedError(f"it says {said!r}, not v{server.version}"))
            elif ending is not None:
                # Told to end, it finishes what it has begun; what is sent from now on would keep it from ending.
                self.lost(server, ending)

    async def _bring_up(self, server: Server) -> None:
        async with server.lock:
            target = self.target
            try:
                await self._fit(server, await self.held(server), target)
                if (refusal := await self._refuses_requests(server)) is not None:
                    raise refusal
            except ServerLostError as error:
                self._given_up(server, error)
                self._set(server, "gone", str(error))
            except ServerBusyError as error:
                self._set(server, "gone", f"it is starting, ending or failing: {error}")
            except ServerError as error:
                self._set(server, "behind", str(error))
            else:
                server.silent_probes = 0
                self.settle(server, None)

    async def _refuses_requests(self, server: Server) -> ServerBusyError | None:
        """Why a server that is not paused takes no requests: it is starting, or was told to end."""
        try:
            await self.client.check(server.url("/ready"), timeout_s=PROBE_TIMEOUT_S)
        except ServerBusyError as error:
            return error
        return None

    def _given_up(self, server: Server, error: ServerLostError) -> bool:
        """After a probe without an answer: whether the server is gone for sure. Its requests then go elsewhere."""
        server.silent_probes += 1
        if isinstance(error.__cause__, TimeoutError) and server.silent_probes < PROBE_FAILURES:
            return False
        now = asyncio.get_running_loop().time()
        for deadline in server.deadlines:
            if not deadline.expired():
                deadline.reschedule(now)
        return True

    async def _fit(self, server: Server, said: str, target: Target) -> None:
        """Make a server that says ``said`` hold ``target``, unpaused: a trainer that was killed may have paused it."""
        wanted = names.weight_version(target.version)
        if said == BASE_WEIGHTS and target.version == 0:
            # A name of its own for the base weights: "default" then says that the server restarted.
            await self.control(server, "/update_weight_version", {"new_version": wanted, "abort_all_requests": False})
        elif said == wanted and (server.version == target.version or target.path is None or target.version == 0):
            pass  # else another trainer's v<N>: the same number, perhaps not the same weights
        elif target.path is not None:
            if target.version > 0:  # the base model was published by others, without a manifest
                await self._check_files(target.path)
            await self.load_from_disk(server, target)
            return
        else:
            raise ServerRefusedError(f"it says {said!r}, not {wanted!r}, and {wanted} was not published to disk")
        server.version = target.version
        await self.control(server, "/continue_generation", {})

    async def _check_files(self, path: Path) -> None:
        """Refuse files that are not as they were published: SGLang dies of a corrupt one, or says that it loaded it."""
        try:
            await asyncio.to_thread(verify_published, path)
        except (OSError, ValueError) as error:
            raise ServerRefusedError(f"published weights cannot be loaded: {error}") from error


async def _woken(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
