"""Publishes new weights to all current servers: each loads files, or rank 0 broadcasts the tensors.

Servers are paused in SGLang's mode ``retract``: requests in flight continue under the new weights, and every token
records its version. Every path ends with /continue_generation, so a failed update never leaves a server paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from areal_api import names
from areal_trainer.servers.client import ServerBusyError, ServerError, ServerLostError
from areal_trainer.servers.control import PAUSE, ServerControl
from areal_trainer.servers.fleet import Fleet, NoServerError, Server, Target
from areal_trainer.weights.broadcast import Broadcast, Bucket
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
        self._group_members: frozenset[tuple[str, int]] = frozenset()  # (address, incarnation) of the broadcast group

    async def publish(self, update: WeightUpdate) -> None:
        """Bring all current servers to ``update``; the watcher updates the others. Raises ``WeightUpdateError``."""
        async with self._lock:
            target = Target(update.version, update.path)
            servers = self._fleet.begin_update(target)
            try:
                if update.broadcast is None:
                    errors = list(await asyncio.gather(*(_attempt(self._load(server, target)) for server in servers)))
                else:
                    errors = await self._broadcast(servers, target, update.broadcast)
            finally:
                for server in servers:
                    if server.updating:
                        self._fleet.finish_update(server, ServerLostError("the update was cancelled"))
            failures = [error for error in errors if error is not None]
            await self._require_one(target, failures, by_broadcast=update.broadcast is not None)

    async def _require_one(self, target: Target, errors: list[ServerError], *, by_broadcast: bool) -> None:
        """Return once a server holds the target; raise if none ever will."""
        if self._fleet.any_ready():
            return
        what = f"no server took weights {names.weight_version(target.version)}"
        if target.path is None:
            reasons = "; ".join(map(str, errors)) or self._fleet.describe()
            raise BroadcastError(f"{what} by broadcast, and they are not on disk: {reasons}")
        refusals = [error for error in errors if not isinstance(error, ServerLostError | ServerBusyError)]
        if refusals and not by_broadcast:  # a retry would be refused again
            raise WeightUpdateError(f"{what}: {'; '.join(map(str, refusals))}")
        try:
            await self._fleet.wait_until_ready()
        except NoServerError as error:
            raise WeightUpdateError(f"{what}: {error}") from error

    async def _load(self, server: Server, target: Target) -> None:
        async with server.lock:
            load = self._control.load_from_disk(server, target)
            error = await _attempt(self._control.while_alive(server, load))
            self._fleet.finish_update(server, error)
        if error is not None:
            raise error

    # Broadcast

    async def _broadcast(self, servers: list[Server], target: Target, broadcast: Broadcast) -> list[ServerError | None]:
        async with contextlib.AsyncExitStack() as locks:
            for server in servers:
                await locks.enter_async_context(server.lock)
            probes = await asyncio.gather(*(_attempt(self._control.reported_version(server)) for server in servers))
            members = []
            for server, error in zip(servers, probes, strict=True):
                if error is None:
                    members.append(server)
                else:  # a group with a dead member would block until its timeout
                    self._fleet.finish_update(server, error)
            failure = await _attempt(self._connect_and_send(members, target, broadcast)) if members else None
            if failure is not None:
                logger.warning("broadcast of v%d failed: %s", target.version, failure)
            for server in members:
                # After an interrupted broadcast a server's weights are undefined: all members load from disk.
                self._fleet.finish_update(server, failure)
        return [*probes, failure]

    async def _connect_and_send(self, servers: list[Server], target: Target, broadcast: Broadcast) -> None:
        members = frozenset((server.address, server.incarnation) for server in servers)
        try:
            if not broadcast.connected or members != self._group_members:
                await self._connect(servers, broadcast)
                self._group_members = members
            try:
                await self._post_all(servers, "/pause_generation", PAUSE)
                await self.send(servers, target, broadcast)
                for server in servers:
                    await self._control.check_version(server, target)
            finally:
                await self._post_all(servers, "/continue_generation", {})
        except RuntimeError as error:  # from torch.distributed: a server did not join, or left
            broadcast.close()
            raise ServerBusyError(f"broadcast: {error}") from error
        except ServerError:
            broadcast.close()
            raise

    async def _connect(self, servers: list[Server], broadcast: Broadcast) -> None:
        sizes = await asyncio.gather(*(self._tp_size(server) for server in servers))
        group_name, port = broadcast.plan_group()
        world_size = 1 + sum(sizes)
        body = {
            "master_address": broadcast.address,
            "master_port": port,
            "world_size": world_size,
            "group_name": group_name,
            "backend": broadcast.backend,
        }
        requests = [
            self._control.client.post(
                server.url("/init_weights_update_group"),
                body | {"rank_offset": 1 + sum(sizes[:i])},
                timeout_s=self._control.limits.broadcast_s,
            )
            for i, server in enumerate(servers)
        ]
        await self._run_together(
            broadcast, lambda: broadcast.connect(world_size), dict(zip(servers, requests, strict=True))
        )

    async def _tp_size(self, server: Server) -> int:
        """Ranks of the server's tensor parallelism, each a member of the broadcast group."""
        info = await self._control.client.get(server.url("/server_info"), timeout_s=self._control.limits.broadcast_s)
        return int(info.get("tp_size", 1))

    async def send(self, servers: list[Server], target: Target, broadcast: Broadcast) -> None:
        """Send all buckets to servers that are paused and in the broadcast's group."""
        await self._post_all(servers, "/begin_weight_update", {"selector": "all"})
        try:
            buckets = broadcast.buckets()
            bucket = await asyncio.to_thread(next, buckets, None)
            while bucket is not None:
                following = await asyncio.to_thread(next, buckets, None)
                await self._send_bucket(servers, target, broadcast, bucket, last=following is None)
                bucket = following
        finally:
            await self._post_all(servers, "/end_weight_update", {})

    async def _send_bucket(
        self, servers: list[Server], target: Target, broadcast: Broadcast, bucket: Bucket, *, last: bool
    ) -> None:
        body = bucket.request(broadcast.group_name) | {"flush_cache": last}
        if last:
            body["weight_version"] = names.weight_version(target.version)
        requests = {
            # No retry: a broadcast can be received only once.
            server: self._control.client.post(
                server.url("/update_weights_from_distributed"), body, timeout_s=self._control.limits.broadcast_s
            )
            for server in servers
        }
        await self._run_together(broadcast, lambda: broadcast.send(bucket), requests)

    async def _run_together(
        self, broadcast: Broadcast, part: Callable[[], None], requests: dict[Server, Coroutine[Any, Any, None]]
    ) -> None:
        """Run our ``part`` in a thread and the servers' ``requests`` concurrently; the first failure aborts all."""
        ours = asyncio.create_task(asyncio.to_thread(part))
        theirs = {
            asyncio.create_task(self._control.while_alive(server, request), name=server.address): server
            for server, request in requests.items()
        }
        try:
            ended, _ = await asyncio.wait([ours, *theirs], return_when=asyncio.FIRST_EXCEPTION)
            if any(task.exception() for task in ended):
                group_name = broadcast.group_name
                broadcast.abort()
                # A server that refused keeps its connections open, and gloo lets the other members wait for it.
                refusing = [theirs[task] for task in ended if task in theirs]
                await asyncio.gather(*(_attempt(self._leave_group(server, group_name)) for server in refusing))
                await asyncio.wait([ours, *theirs], timeout=self._control.timings.abort_timeout_s)
        finally:
            if not ours.done():
                broadcast.abort()
            for task in theirs:
                task.cancel()
            await asyncio.wait([ours, *theirs])
        # A server's error explains more than the group's, and the first error more than those that followed.
        errors = {task: task.exception() for task in [ours, *theirs] if not task.cancelled()}
        for task in [*(ended & theirs.keys()), *theirs, ours]:
            if (error := errors.get(task)) is not None:
                raise error

    async def _leave_group(self, server: Server, group_name: str) -> None:
        url = server.url("/destroy_weights_update_group")
        await self._control.client.post(
            url, {"group_name": group_name}, timeout_s=self._control.timings.abort_timeout_s
        )

    async def _post_all(self, servers: list[Server], path: str, body: dict[str, Any]) -> None:
        results = await asyncio.gather(*(_attempt(self._control.post(server, path, body)) for server in servers))
        for error in results:
            if error is not None:
                raise error


async def _attempt(step: Awaitable[object]) -> ServerError | None:
    """The error of ``step``, if a server caused one."""
    try:
        await step
    except ServerError as error:
        return error
    return None
