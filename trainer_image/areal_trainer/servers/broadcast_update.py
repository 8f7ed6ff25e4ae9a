"""Sends new weights to the servers by broadcast: rank 0 and every server rank form a process group.

Every wait in a group has a deadline, ``rollout.broadcast_timeout``. When the servers change, the group is destroyed on
all members that are left. After a failure the group is aborted, and a server whose scheduler still does not answer is
told to exit: a collective that waits for a lost member cannot be interrupted from outside. Its launcher or the kubelet
restarts it, as it restarts one that does not even answer that (its health checks fail).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from areal_api import names
from areal_trainer.servers.client import ServerBusyError, ServerError, ServerLostError
from areal_trainer.servers.control import PAUSE, ServerControl
from areal_trainer.servers.fleet import Server, Target
from areal_trainer.weights.broadcast import Broadcast, Bucket

logger = logging.getLogger(__name__)

LEAVE = "/destroy_weights_update_group"


class BroadcastUpdater:
    """The servers' end of ``weights.broadcast``. Use only on the engine's event loop."""

    def __init__(self, control: ServerControl) -> None:
        self._control = control
        self._group_name = ""
        self._members: dict[Server, tuple[str, int]] = {}  # of the group, by address and incarnation

    async def update(self, servers: list[Server], target: Target, broadcast: Broadcast) -> None:
        """Bring ``servers`` to ``target``. The caller holds their locks.

        After a ``ServerError`` there is no group, the weights of all servers are undefined, and every server that
        answers continues to generate.
        """
        try:
            if not broadcast.connected or self._members != _identities(servers):
                await self._connect(servers, broadcast)
            await self._post_all(servers, "/pause_generation", PAUSE)
            await self.send(servers, target, broadcast)
            for server in servers:
                await self._control.check_version(server, target)
            await self._post_all(servers, "/continue_generation", {})
        except BaseException as error:
            await self._give_up(servers, broadcast)
            if isinstance(error, RuntimeError):  # from torch.distributed: a server did not join, or left
                raise ServerBusyError(f"broadcast: {error}") from error
            raise

    async def close(self) -> None:
        """Destroy the group on the servers, which outlive the trainer."""
        await self._leave_group()

    async def send(self, servers: list[Server], target: Target, broadcast: Broadcast) -> None:
        """Send all buckets to servers that are paused and in the broadcast's group."""
        await self._post_all(servers, "/begin_weight_update", {"selector": "all"})
        buckets = broadcast.buckets()
        bucket = await asyncio.to_thread(next, buckets, None)
        while bucket is not None:
            following = await asyncio.to_thread(next, buckets, None)
            await self._send_bucket(servers, target, broadcast, bucket, last=following is None)
            bucket = following
        await self._post_all(servers, "/end_weight_update", {})

    # The group

    async def _connect(self, servers: list[Server], broadcast: Broadcast) -> None:
        await self._leave_group()
        sizes = await asyncio.gather(*(self._tp_size(server) for server in servers))
        peers = [server.address for server in servers]
        plan = await asyncio.to_thread(broadcast.plan_group, peers)  # closes the old group, and resolves names
        world_size = 1 + sum(sizes)
        body = {
            "master_address": plan.address,
            "master_port": plan.port,
            "world_size": world_size,
            "group_name": plan.name,
            "backend": broadcast.backend,
        }
        requests = {
            server: self._control.client.post(
                server.url("/init_weights_update_group"),
                body | {"rank_offset": 1 + sum(sizes[:i])},
                timeout_s=self._control.limits.broadcast_s,
            )
            for i, server in enumerate(servers)
        }
        self._group_name, self._members = plan.name, _identities(servers)
        await self._run_together(broadcast, lambda: broadcast.connect(world_size), requests)

    async def _leave_group(self) -> None:
        """Destroy the group on every server that is still the process that joined it."""
        members, self._members = self._members, {}
        left = [server for server, identity in members.items() if _identity(server) == identity]
        body = {"group_name": self._group_name}
        await asyncio.gather(*(self._post_in_time(server, LEAVE, body) for server in left))

    async def _give_up(self, servers: list[Server], broadcast: Broadcast) -> None:
        """Leave the group for good, and bring every server back to where it can load weights, or to its restart."""
        self._members = {}
        await asyncio.to_thread(broadcast.abort)
        await asyncio.gather(*(self._release(server) for server in servers))

    async def _release(self, server: Server) -> None:
        steps: list[tuple[str, dict[str, Any]]] = [
            ("/end_weight_update", {}),
            (LEAVE, {"group_name": self._group_name}),
            ("/continue_generation", {}),
        ]
        for path, body in steps:
            error = await self._post_in_time(server, path, body)
            if isinstance(error, ServerLostError):
                logger.warning("%s does not answer after a failed broadcast and is told to exit", server.address)
                await self._post_in_time(server, names.SERVER_EXIT_PATH, {})
                return

    async def _post_in_time(self, server: Server, path: str, body: dict[str, Any]) -> ServerError | None:
        url, timeout_s = server.url(path), self._control.timings.abort_timeout_s
        return await attempt(self._control.client.post(url, body, timeout_s=timeout_s))

    async def _tp_size(self, server: Server) -> int:
        """Ranks of the server's tensor parallelism, each a member of the broadcast group."""
        info = await self._control.client.get(server.url("/server_info"), timeout_s=self._control.limits.broadcast_s)
        return int(info.get("tp_size", 1))

    # The collective

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
                await asyncio.to_thread(broadcast.abort)
                # A server that refused keeps its connections open, and gloo lets the other members wait for it.
                refusing = [theirs[task] for task in ended if task in theirs]
                body = {"group_name": group_name}
                await asyncio.gather(*(self._post_in_time(server, LEAVE, body) for server in refusing))
                await asyncio.wait([ours, *theirs], timeout=self._control.timings.abort_timeout_s)
        finally:
            if not ours.done():
                await asyncio.to_thread(broadcast.abort)
            for task in theirs:
                task.cancel()
            await asyncio.wait([ours, *theirs])
        # A server's error explains more than the group's, and the first error more than those that followed.
        errors = {task: task.exception() for task in [ours, *theirs] if not task.cancelled()}
        for task in [*(ended & theirs.keys()), *theirs, ours]:
            if (error := errors.get(task)) is not None:
                raise error

    async def _post_all(self, servers: list[Server], path: str, body: dict[str, Any]) -> None:
        results = await asyncio.gather(*(attempt(self._control.post(server, path, body)) for server in servers))
        for error in results:
            if error is not None:
                raise error


def _identity(server: Server) -> tuple[str, int]:
    return (server.address, server.incarnation)


def _identities(servers: list[Server]) -> dict[Server, tuple[str, int]]:
    return {server: _identity(server) for server in servers}


async def attempt(step: Awaitable[object]) -> ServerError | None:
    """The error of ``step``, if a server caused one."""
    try:
        await step
    except ServerError as error:
        return error
    return None
