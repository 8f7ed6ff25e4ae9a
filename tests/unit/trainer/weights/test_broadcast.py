"""Rank 0's end of a broadcast, against a peer in this process that joins but does not receive."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from areal_trainer.weights.broadcast import Broadcast
from areal_trainer.weights.finite import NonFiniteWeightsError

TIMEOUT = timedelta(seconds=60)
PEERS = ["127.0.0.1:30000"]


@pytest.fixture
def broadcast() -> Iterator[Broadcast]:
    broadcast = Broadcast(
        lambda: iter([("a.weight", torch.arange(250_000.0))]),
        device=torch.device("cpu"), dtype=torch.float32, timeout_s=TIMEOUT.total_seconds(),
    )  # fmt: skip
    yield broadcast
    broadcast.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def join(name: str, port: int) -> dist.ProcessGroupGloo:
    """A server's end, as torch creates it for a group of that name."""
    store: dist.Store = dist.TCPStore("127.0.0.1", port, 2, timeout=TIMEOUT, wait_for_workers=False)
    for prefix in (name, f"{name}/", "cpu/"):
        store = dist.PrefixStore(prefix, store)
    return dist.ProcessGroupGloo(store, 1, 2, TIMEOUT)


def connected(broadcast: Broadcast, threads: ThreadPoolExecutor) -> dist.ProcessGroupGloo:
    plan = broadcast.plan_group(PEERS)
    connecting = threads.submit(broadcast.connect, 2)
    peer = join(plan.name, plan.port)
    connecting.result(20)
    return peer


def waits_for_servers() -> bool:
    return any(thread.name == "broadcast" for thread in threading.enumerate())


def test_a_peer_receives_the_tensors(broadcast: Broadcast, threads: ThreadPoolExecutor) -> None:
    peer = connected(broadcast, threads)
    bucket = next(broadcast.buckets())
    sending = threads.submit(broadcast.send, bucket)
    received = torch.empty_like(bucket.payload)
    peer.broadcast([received]).wait()
    sending.result(20)
    assert torch.equal(received.view(torch.float32), torch.arange(250_000.0))


def test_abort_ends_a_broadcast_that_waits_for_a_peer(broadcast: Broadcast, threads: ThreadPoolExecutor) -> None:
    peer = connected(broadcast, threads)
    sending = threads.submit(broadcast.send, next(broadcast.buckets()))
    while not waits_for_servers():
        threading.Event().wait(0.001)
    broadcast.abort()
    with pytest.raises(RuntimeError, match="aborted"):
        sending.result(20)  # by itself it would end after 60 s
    assert not broadcast.connected
    del peer  # closes its connections, like a server that leaves the group
    for thread in threading.enumerate():
        if thread.name == "broadcast":
            thread.join(20)
    assert not waits_for_servers()


def test_abort_ends_a_wait_for_peers_and_releases_them(broadcast: Broadcast, threads: ThreadPoolExecutor) -> None:
    plan = broadcast.plan_group(PEERS)
    connecting = threads.submit(broadcast.connect, 3)
    store = dist.TCPStore("127.0.0.1", plan.port, 3, timeout=TIMEOUT, wait_for_workers=False)
    joining = threads.submit(dist.ProcessGroupGloo, dist.PrefixStore(plan.name, store), 1, 3, TIMEOUT)
    while not waits_for_servers():
        threading.Event().wait(0.001)
    broadcast.abort()
    with pytest.raises(RuntimeError, match="aborted"):
        connecting.result(20)
    with pytest.raises(RuntimeError):
        joining.result(20)


def test_after_an_abort_a_new_group_can_be_joined(broadcast: Broadcast, threads: ThreadPoolExecutor) -> None:
    connected(broadcast, threads)
    broadcast.abort()
    peer = connected(broadcast, threads)
    bucket = next(broadcast.buckets())
    sending = threads.submit(broadcast.send, bucket)
    peer.broadcast([torch.empty_like(bucket.payload)]).wait()
    sending.result(20)


def test_group_names_are_unique_across_trainers(broadcast: Broadcast) -> None:
    other = Broadcast(lambda: iter([]), device=torch.device("cpu"), dtype=torch.float32, timeout_s=60.0)
    names = [one.plan_group(PEERS).name for one in (broadcast, other, broadcast, other)]
    assert len(set(names)) == 4


def test_a_broadcast_of_weights_that_are_not_finite_is_refused() -> None:
    broadcast = Broadcast(
        lambda: iter([("a.weight", torch.tensor([1.0, float("nan")]))]),
        device=torch.device("cpu"), dtype=torch.float32, timeout_s=60.0,
    )  # fmt: skip
    with pytest.raises(NonFiniteWeightsError, match=r"a\.weight"):
        next(broadcast.buckets())


def test_a_broadcast_to_a_peer_that_never_receives_ends_at_the_deadline(threads: ThreadPoolExecutor) -> None:
    broadcast = Broadcast(
        lambda: iter([("a.weight", torch.zeros(4_000_000))]),  # more than the sockets' buffers hold
        device=torch.device("cpu"), dtype=torch.float32, timeout_s=1.0,
    )  # fmt: skip
    peer = connected(broadcast, threads)
    with pytest.raises(RuntimeError, match=r"rollout\.broadcast_timeout|Timed out"):
        broadcast.send(next(broadcast.buckets()))
    broadcast.close()
    del peer


def test_the_address_is_resolved_when_a_group_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    broadcast = Broadcast(lambda: iter([]), device=torch.device("cpu"), dtype=torch.float32, timeout_s=60.0)
    known: dict[str, str] = {}

    def getaddrinfo(host: str, port: int, **rest: object) -> list[object]:
        if host not in known:
            raise socket.gaierror(f"{host} is unknown")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", (known[host], port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(RuntimeError, match=r"no server has an address .*case-server-0\.ns:30000: case-server-0\.ns is"):
        broadcast.plan_group(["case-server-0.ns:30000"])
    known["case-server-1.ns"] = "127.0.0.1"  # the pod of the other server has not started
    plan = broadcast.plan_group(["case-server-0.ns:30000", "case-server-1.ns:30000"])
    assert plan.address == "127.0.0.1"
