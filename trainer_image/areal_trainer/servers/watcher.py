"""Watches the servers: probes current ones, brings all others to the target weights, and follows those that move."""

from __future__ import annotations

import asyncio
import logging

from areal_api import names
from areal_trainer.servers.addresses import ServerAddresses
from areal_trainer.servers.client import ServerBusyError, ServerError, ServerLostError, ServerRefusedError
from areal_trainer.servers.control import ServerControl
from areal_trainer.servers.fleet import Fleet, Server

logger = logging.getLogger(__name__)


class Watcher:
    """One task per server, and one for their addresses. Use only on the engine's event loop."""

    def __init__(self, fleet: Fleet, control: ServerControl, addresses: ServerAddresses) -> None:
        self._fleet = fleet
        self._addresses = addresses
        self._control = control
        self._timings = control.timings
        self._unprobed: set[Server] = set(fleet.servers)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Watch all servers. Returns when each was probed once and one is ready; otherwise ``NoServerError``."""
        self._tasks = [asyncio.create_task(self._watch(server), name=server.address) for server in self._fleet.servers]
        if self._addresses.file is not None:
            self._tasks.append(asyncio.create_task(self._follow_addresses(), name="addresses"))
        await self._fleet.wait_until(lambda: not self._unprobed and self._fleet.any_ready())

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, server: Server) -> None:
        backoff_s = self._timings.min_backoff_s
        while True:
            server.wake.clear()
            if server.ready:
                backoff_s = self._timings.min_backoff_s
                if not await _is_set_within(server.wake, self._timings.probe_period_s):
                    await self._probe(server)
                continue
            if not server.updating:
                await self._bring_up(server)
            self._unprobed.discard(server)
            self._fleet.notify()
            if not server.ready:
                await _is_set_within(server.wake, backoff_s)
                backoff_s = min(backoff_s * 2, self._timings.max_backoff_s)

    async def _follow_addresses(self) -> None:
        """Move servers to the addresses in the file. It may be on a slow file system: it is read in a thread."""
        problem = ""
        while True:
            await asyncio.sleep(self._timings.max_backoff_s)
            try:
                addresses = await asyncio.to_thread(self._addresses.read)
            except (OSError, ValueError) as error:
                if str(error) != problem:
                    problem = str(error)
                    logger.warning("cannot read the servers' addresses: %s", problem)
                continue
            problem = ""
            for server, address in zip(self._fleet.servers, addresses, strict=True):
                if server.address != address:
                    self._fleet.move(server, address)

    async def _probe(self, server: Server) -> None:
        """Check a current server. The result counts only if nothing else is changing its weights."""
        if server.lock.locked():
            return
        async with server.lock:
            if server.state != "current":
                return
            try:
                reported = await self._control.reported_version(server)
                draining = await self._control.readiness_error(server)
            except ServerLostError as error:
                if self._is_lost(server, error):
                    self._fleet.mark_gone(server, error)
                return
            except ServerError as error:
                self._fleet.mark_stale(server, error)
                return
            server.silent_probes = 0
            if reported != names.weight_version(server.version):
                self._fleet.mark_stale(server, ServerRefusedError(f"it reports {reported!r}, not v{server.version}"))
            elif draining is not None:
                # A draining server finishes its requests; new ones would keep it from exiting.
                self._fleet.mark_gone(server, draining)

    async def _bring_up(self, server: Server) -> None:
        if not server.address:
            return
        async with server.lock:
            try:
                await self._control.sync_weights(server, self._fleet.target)
                if (refusal := await self._control.readiness_error(server)) is not None:
                    raise refusal
                await self._control.learn_capacity(server)
            except ServerLostError as error:
                self._is_lost(server, error)
                self._fleet.mark_gone(server, error)
            except ServerBusyError as error:
                self._fleet.mark_gone(server, ServerBusyError(f"it is starting, draining or failing: {error}"))
            except ServerError as error:
                self._fleet.mark_behind(server, error)
            else:
                server.silent_probes = 0
                self._fleet.finish_update(server, None)

    def _is_lost(self, server: Server, error: ServerLostError) -> bool:
        """After an unanswered probe: whether the server counts as gone. If so, its requests move to other servers."""
        server.silent_probes += 1
        if isinstance(error.__cause__, TimeoutError) and server.silent_probes < self._timings.probe_failures:
            return False
        server.expire_requests()
        return True


async def _is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
