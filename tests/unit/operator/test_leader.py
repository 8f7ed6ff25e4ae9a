"""Leader election: one holder, judged by its own clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from areal_operator import leader as module
from areal_operator.cluster import ApiError
from areal_operator.leader import NAME, Leader
from support.memory_cluster import MemoryCluster


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_PERIOD_S", 0.2)


async def started(leader: Leader) -> asyncio.Task[None]:
    """The running leader after its first attempt."""
    before = leader.last_attempt_at
    task = asyncio.create_task(leader.run())
    async with asyncio.timeout(10.0):
        while leader.last_attempt_at == before:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    return task


async def stopped(task: asyncio.Task[None]) -> None:
    """Cancel, repeatedly: until Python 3.12 ``wait_for`` may lose a cancellation."""
    async with asyncio.timeout(10.0):
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


def spec_of(cluster: MemoryCluster) -> Any:
    return cluster.objects["Lease", "ns", NAME]["spec"]


async def test_the_first_operator_holds_the_lease_and_renews_it() -> None:
    cluster = MemoryCluster()
    leader = Leader(cluster, namespace="ns", identity="a")
    task = await started(leader)
    assert leader.leads.is_set()
    assert spec_of(cluster)["holderIdentity"] == "a"
    before = spec_of(cluster)["renewTime"]
    async with asyncio.timeout(10.0):
        while spec_of(cluster)["renewTime"] == before:
            await asyncio.sleep(0.01)
    await stopped(task)


async def test_a_second_operator_waits_until_the_first_releases_the_lease() -> None:
    cluster = MemoryCluster()
    first, second = (Leader(cluster, namespace="ns", identity=name) for name in "ab")
    one = await started(first)
    two = await started(second)
    assert not second.leads.is_set()
    await stopped(one)
    await first.release()
    await asyncio.wait_for(second.leads.wait(), 10.0)
    assert spec_of(cluster)["holderIdentity"] == "b"
    await stopped(two)


async def test_the_timestamps_of_another_holder_do_not_matter() -> None:
    cluster = MemoryCluster()
    task = await started(Leader(cluster, namespace="ns", identity="a"))
    await stopped(task)
    spec_of(cluster)["renewTime"] = "2000-01-01T00:00:00.000000Z"
    second = Leader(cluster, namespace="ns", identity="b")
    task = await started(second)
    assert not second.leads.is_set()  # it has not been seen unchanged for the duration of the Lease
    await stopped(task)


async def test_a_holder_that_cannot_renew_stops_before_others_may_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RENEW_DEADLINE_S", 0.5)
    cluster = MemoryCluster()
    leader = Leader(cluster, namespace="ns", identity="a")
    task = await started(leader)
    cluster.check = lambda method, obj: ApiError(503, "ServiceUnavailable", "")
    await asyncio.wait_for(leader.lost.wait(), 10.0)
    assert "the Lease cannot be renewed: ApiError: HTTP status 503 ServiceUnavailable" in caplog.text
    await stopped(task)


async def test_work_is_cancelled_when_the_lease_is_lost() -> None:
    cluster = MemoryCluster()
    leader = Leader(cluster, namespace="ns", identity="a")
    task = await started(leader)
    finished = False

    async def work() -> None:
        nonlocal finished
        async with leader.leading():
            await asyncio.sleep(60.0)
            finished = True

    working = asyncio.create_task(work())
    await asyncio.wait_for(leader.leads.wait(), 10.0)
    await asyncio.sleep(0.05)
    await stopped(task)
    await leader.release()
    await asyncio.wait_for(working, 10.0)
    assert not finished
