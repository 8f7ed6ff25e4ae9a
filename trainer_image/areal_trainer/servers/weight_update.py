"""New weights to all current servers: from files that each loads, or by a broadcast from rank 0.

Servers are paused in SGLang's mode ``retract``: what they work on goes on under the new weights, its tokens tagged.
Every path ends with /continue_generation: a failed update never leaves a server paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from areal_api import names
from areal_trainer.servers.client import ServerBusyError, ServerError, ServerLostError
from areal_trainer.servers.fleet import PAUSE, Fleet, NoServerError, Server, Target
from areal_trainer.weights.broadcast import Broadcast, Bucket
from areal_trainer.weights.disk import WeightUpdate

logger = logging.getLogger(__name__)


LETTING_GO_S = 10.0  # for servers to end their part of a broadcast that was given up


class WeightUpdateError(Exception):
    """No server took the new weights."""


class BroadcastError(WeightUpdateError):
    """A broadcast failed, and the weights are in no directory: they may be published again, from one."""


async def publish(fleet: Fleet, update: WeightUpdate) -> None:
    """Bring all current servers to ``update``; the others follow by themselves. Raises ``WeightUpdateError``."""
    servers = [server for server in fleet.servers if server.state == "current"]
    for server in servers:
        server.updating = True
    target = Target(update.version, update.path)
    fleet.aim(target)
    try:
        if update.broadcast is None:
            errors = list(await asyncio.gather(*(_attempt(_load(fleet, server, target)) for server in servers)))
        else:
            errors = await _broadcast(fleet, servers, target, update.broadcast)
    finally:
        for server in servers:
            if server.updating:
                fleet.settle(server, ServerLostError("the update was given up"))
    failures = [error for error in errors if error is not None]
    await _need_one(fleet, target, failures, by_broadcast=update.broadcast is not None)


async def _need_one(fleet: Fleet, target: Target, errors: list[ServerError], *, by_broadcast: bool) -> None:
    """Return once a server holds the target; raise where none ever will."""
    if any(server.ready for server in fleet.servers):
        return
    what = f"no server took weights {names.weight_version(target.version)}"
    if target.path is None:
        told = "; ".join(map(str, errors)) or fleet.states()
        raise BroadcastError(f"{what} by broadcast, and they are in no directory: {told}")
    refusals = [error for error in errors if not isinstance(error, ServerLostError | ServerBusyError)]
    if refusals and not by_broadcast:  # what was refused once would be refused again
        raise WeightUpdateError(f"{what}: {'; '.join(map(str, refusals))}")
    try:
        await fleet.wait_for_one()
    except NoServerError as error:
        raise WeightUpdateError(f"{what}: {error}") from error


async def _attempt(step: Awaitable[object]) -> ServerError | None:
    try:
        await step
    except ServerError as error:
        return error
    return None


async def _load(fleet: Fleet, server: Server, target: Target) -> None:
    async with server.lock:
        error = await _attempt(fleet.while_alive(server, fleet.load_from_disk(server, target)))
        fleet.settle(server, error)
    if error is not None:
        raise error


# Broadcast


async def _broadcast(
    fleet: Fleet, servers: list[Server], target: Target, broadcast: Broadcast
) -> list[ServerError | None]:
    async with contextlib.AsyncExitStack() as locks:
        for server in servers:
            await locks.enter_async_context(server.lock)
        probes = await asyncio.gather(*(_attempt(fleet.held(server)) for server in servers))
        members = []
        for server, error in zip(servers, probes, strict=True):
            if error is None:
                members.append(server)
            else:  # a group that waits for a dead server would wait for its whole timeout
                fleet.settle(server, error)
        sent = await _attempt(_connected_send(fleet, members, target, broadcast)) if members else None
        if sent is not None:
            logger.warning("broadcast of v%d failed: %s", target.version, sent)
        for server in members:
            # After a broadcast that broke off nobody knows what a server holds: all of them load from disk.
            fleet.settle(server, sent)
    return [*probes, sent]


async def _connected_send(fleet: Fleet, servers: list[Server], target: Target, broadcast: Broadcast) -> None:
    members = frozenset((server.address, server.incarnation) for server in servers)
    try:
        if not broadcast.connected or members != fleet.broadcast_members:
            await _connect(fleet, servers, broadcast)
            fleet.broadcast_members = members
        try:
            await _everywhere(fleet, servers, "/pause_generation", PAUSE)
            await _send(fleet, servers, target, broadcast)
            for server in servers:
                await fleet.check_version(server, target)
        finally:
            await _everywhere(fleet, servers, "/continue_generation", {})
    except RuntimeError as error:  # torch.distributed: a server did not join, or left
        broadcast.close()
        raise ServerBusyError(f"broadcast: {error}") from error
    except ServerError:
        broadcast.close()
        raise


async def _connect(fleet: Fleet, servers: list[Server], broadcast: Broadcast) -> None:
    sizes = await asyncio.gather(*(_world_size(fleet, server) for server in servers))
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
        fleet.client.post(
            server.url("/init_weights_update_group"),
            body | {"rank_offset": 1 + sum(sizes[:i])},
            timeout_s=fleet.load_timeout_s,
        )
        for i, server in enumerate(servers)
    ]
    await _together(fleet, broadcast, lambda: broadcast.connect(world_size), dict(zip(servers, requests, strict=True)))


async def _world_size(fleet: Fleet, server: Server) -> int:
    info = await fleet.client.get(server.url("/server_info"), timeout_s=fleet.load_timeout_s)
    return int(info.get("tp_size", 1))


async def _send(fleet: Fleet, servers: list[Server], target: Target, broadcast: Broadcast) -> None:
    await _everywhere(fleet, servers, "/begin_weight_update", {"selector": "all"})
    try:
        buckets = broadcast.buckets()
        bucket = await asyncio.to_thread(next, buckets, None)
        while bucket is not None:
            following = await asyncio.to_thread(next, buckets, None)
            await _send_bucket(fleet, servers, target, broadcast, bucket, last=following is None)
            bucket = following
    finally:
        await _everywhere(fleet, servers, "/end_weight_update", {})


async def _send_bucket(
    fleet: Fleet, servers: list[Server], target: Target, broadcast: Broadcast, bucket: Bucket, *, last: bool
) -> None:
    body = bucket.request(broadcast.group_name) | {"flush_cache": last}
    if last:
        body["weight_version"] = names.weight_version(target.version)
    requests = {
        # Not repeated: a broadcast is received once.
        server: fleet.client.post(server.url("/update_weights_from_distributed"), body, timeout_s=fleet.load_timeout_s)
        for server in servers
    }
    await _together(fleet, broadcast, lambda: broadcast.send(bucket), requests)


async def _together(
    fleet: Fleet, broadcast: Broadcast, part: Callable[[], None], requests: dict[Server, Coroutine[Any, Any, None]]
) -> None:
    """Do our ``part`` in a thread while the servers do theirs; the first failure frees all that wait for each other."""
    ours = asyncio.create_task(asyncio.to_thread(part))
    theirs = {
        asyncio.create_task(fleet.while_alive(server, request), name=server.address): server
        for server, request in requests.items()
    }
    try:
        ended, _ = await asyncio.wait([ours, *theirs], return_when=asyncio.FIRST_EXCEPTION)
        if any(task.exception() for task in ended):
            group_name = broadcast.group_name
            broadcast.abort()
            # One that refused holds its connections, at which gloo lets others wait.
            refusing = [theirs[task] for task in ended if task in theirs]
            await asyncio.gather(*(_attempt(_leave(fleet, server, group_name)) for server in refusing))
            await asyncio.wait([ours, *theirs], timeout=LETTING_GO_S)
    finally:
        if not ours.done():
            broadcast.abort()
        for task in theirs:
            task.cancel()
        await asyncio.wait([ours, *theirs])
    # What a server says explains more than what the group says, and what it said first more than what followed.
    errors = {task: task.exception() for task in [ours, *theirs] if not task.cancelled()}
    for task in [*(ended & theirs.keys()), *theirs, ours]:
        if (error := errors.get(task)) is not None:
            raise error


async def _leave(fleet: Fleet, server: Server, group_name: str) -> None:
    await fleet.client.post(
        server.url("/destroy_weights_update_group"), {"group_name": group_name}, timeout_s=LETTING_GO_S
    )


async def _everywhere(fleet: Fleet, servers: list[Server], path: str, body: dict[str, Any]) -> None:
    results = await asyncio.gather(*(_attempt(fleet.control(server, path, body)) for server in servers))
    for error in results:
        if error is not None:
            raise error
