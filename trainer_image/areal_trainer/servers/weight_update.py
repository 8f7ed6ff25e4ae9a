"""Publishes new weights to all current servers: each loads files, or rank 0 broadcasts the tensors.

Servers are paused in SGLang's mode ``retract``: requests in flight continue under the new weights, and every token
records its version. Every path ends with /continue_generation, so a failed update never leaves a server paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from areal_api import names
from areal_trainer.servers.broadcast_update import BroadcastUpdater, attempt
from areal_trainer.servers.client import ServerBusyError, ServerError, ServerLostError
from areal_trainer.servers.control import ServerControl
from areal_trainer.servers.fleet import Fleet, NoServerError, Server, Target
from areal_trainer.weights.broadcast import Broadcast
from areal_trainer.weights.disk import WeightUpdate

logger = logging.getLogger(__name__)


class WeightUpdateError(Exception):
    """No server took the new weights."""


class BroadcastError(WeightUpdateError):
    """A broadcast failed and the weights are not on disk; the caller may publish them again, from a directory."""


class WeightUpdater:
    """Publishes versions one at a time. Use only on the engine's event loop."""

    def __init__(self, fleet: Fleet, control: ServerControl) -> None:
        self._fleet = fleet
        self._control = control
        self._lock = asyncio.Lock()
        self._broadcasts = BroadcastUpdater(control)
        self._run_ends = False

    async def publish(self, update: WeightUpdate) -> None:
        """Bring all current servers to ``update``; the watcher updates the others. Raises ``WeightUpdateError``."""
        async with self._lock:
            target = Target(update.version, update.path)
            servers = self._fleet.begin_update(target)
            try:
                if update.broadcast is None:
                    errors = list(await asyncio.gather(*(attempt(self._load(server, target)) for server in servers)))
                else:
                    errors = await self._broadcast(servers, target, update.broadcast)
            finally:
                for server in servers:
                    if server.updating:
                        self._fleet.finish_update(server, ServerLostError("the update was cancelled"))
            failures = [error for error in errors if error is not None]
            await self._require_one(target, failures, by_broadcast=update.broadcast is not None)

    def end_run(self) -> None:
        """Wait for no server from now on. The run was asked to stop, and the servers may have been as well."""
        self._run_ends = True
        self._fleet.notify()

    async def close(self) -> None:
        """Take the servers out of the broadcast group."""
        await self._broadcasts.close()

    async def _require_one(self, target: Target, errors: list[ServerError], *, by_broadcast: bool) -> None:
        """Return once a server holds the target or the run ends; raise if no server ever will."""
        if self._fleet.any_ready() or self._run_ends:
            return
        what = f"no server took weights {names.weight_version(target.version)}"
        if target.path is None:
            reasons = "; ".join(map(str, errors)) or self._fleet.describe()
            raise BroadcastError(f"{what} by broadcast, and they are not on disk: {reasons}")
        refusals = [error for error in errors if not isinstance(error, ServerLostError | ServerBusyError)]
        if refusals and not by_broadcast:  # a retry would be refused again
            raise WeightUpdateError(f"{what}: {'; '.join(map(str, refusals))}")
        try:
            await self._fleet.wait_until(lambda: self._fleet.any_ready() or self._run_ends)
        except NoServerError as error:
            raise WeightUpdateError(f"{what}: {error}") from error

    async def _load(self, server: Server, target: Target) -> None:
        async with server.lock:
            load = self._control.load_from_disk(server, target)
            error = await attempt(self._control.while_alive(server, load))
            self._fleet.finish_update(server, error)
        if error is not None:
            raise error

    # Broadcast

    async def _broadcast(self, servers: list[Server], target: Target, broadcast: Broadcast) -> list[ServerError | None]:
        async with contextlib.AsyncExitStack() as locks:
            for server in servers:
                await locks.enter_async_context(server.lock)
            probes = await asyncio.gather(*(attempt(self._control.reported_version(server)) for server in servers))
            members = []
            for server, error in zip(servers, probes, strict=True):
                if error is None:
                    members.append(server)
                else:  # a group with a dead member would block until its timeout
                    self._fleet.finish_update(server, error)
            failure = await attempt(self._broadcasts.update(members, target, broadcast)) if members else None
            if failure is not None:
                logger.warning("broadcast of v%d failed: %s", target.version, failure)
            for server in members:
                # After an interrupted broadcast a server's weights are undefined: all members load from disk.
                self._fleet.finish_update(server, failure)
        return [*probes, failure]
