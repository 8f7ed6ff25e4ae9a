"""Watches of children: what they store, whom they tell, and what ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from areal_api import resource_names
from areal_operator.child_watch import ChildWatch
from areal_operator.cluster import ApiError, ObjectList
from areal_operator.metrics import Metrics
from areal_operator.observed import Object
from areal_operator.store import Key, Store
from support.memory_cluster import MemoryCluster

KEY = ("ns", "exp")


def child(version: int, **metadata: Any) -> Object:
    labels = resource_names.labels("exp")
    base = {"name": "exp-server", "namespace": "ns", "uid": "c", "resourceVersion": str(version), "labels": labels}
    return {"kind": "Service", "metadata": {**base, **metadata}, "spec": {}}


class Watched(MemoryCluster):
    """Reports ``events`` to the first watch, and counts the watches."""

    def __init__(self, *events: tuple[str, Object]) -> None:
        super().__init__()
        self.events = list(events)
        self.watches = 0

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[tuple[str, Object]]:
        self.watches += 1
        while self.events:
            yield self.events.pop(0)


def watch_of(cluster: MemoryCluster, store: Store, changed: list[Key], relist_s: float = 300.0) -> ChildWatch:
    return ChildWatch(
        cluster,
        "Service",
        None,
        store=store,
        changed=changed.append,
        metrics=Metrics(),
        relist_s=relist_s,
    )


async def test_events_update_the_store_and_report_the_experiment() -> None:
    store, changed = Store(), list[Key]()
    cluster = Watched(("ADDED", child(1)), ("MODIFIED", child(2, uid="d", labels={})), ("DELETED", child(3)))
    await watch_of(cluster, store, changed).follow(0)
    assert changed == [KEY, KEY]
    assert store.get(KEY, "Service", "exp-server") is None


async def test_a_listing_finds_what_a_watch_has_missed() -> None:
    store, changed = Store(), list[Key]()
    cluster = Watched()
    watch = watch_of(cluster, store, changed)
    store.put(child(0, name="exp-gone", uid="gone"))
    cluster.add(child(0))
    await watch.relist()
    assert changed == [KEY, KEY]
    assert store.get(KEY, "Service", "exp-gone") is None
    assert store.get(KEY, "Service", "exp-server") is not None
    assert watch.listed.is_set()


@pytest.mark.parametrize("metadata", [None, {}, {"name": "x", "namespace": "ns"}])
async def test_an_object_that_cannot_be_read_ends_no_watch(metadata: Any, caplog: pytest.LogCaptureFixture) -> None:
    store, changed = Store(), list[Key]()
    broken: Object = {"kind": "Service", "metadata": metadata}
    await watch_of(Watched(("ADDED", broken), ("ADDED", child(1))), store, changed).follow(0)
    assert caplog.text.count("the watch event cannot be processed") == 1
    assert changed == [KEY]


async def test_a_refused_kind_is_named_once_and_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Watched):
        tries = 0

        async def pages(self, *_: Any) -> AsyncIterator[ObjectList]:
            self.tries += 1
            raise ApiError(403, "Forbidden", "services is forbidden")
            yield

    cluster = Refusing()
    watch = watch_of(cluster, Store(), [], relist_s=0.0)
    task = asyncio.create_task(watch.run())
    await asyncio.wait_for(watch.listed.wait(), 30.0)
    for _ in range(3):
        with pytest.raises(ApiError):
            await watch.relist()
    task.cancel()
    assert caplog.text.count("services of the cluster cannot be read") == 1


async def test_a_watch_says_why_it_cannot_read_and_what_it_reads() -> None:
    cluster, store = Watched(), Store()
    watch = ChildWatch(
        cluster, "Workload", "ns", store=store, changed=lambda key: None, metrics=Metrics(), relist_s=300.0
    )
    assert (watch.reads("Workload", "ns"), watch.reads("Workload", "other"), watch.reads("Job", "ns")) == (
        True,
        False,
        False,
    )

    async def refuse(*_: Any, **__: Any) -> ObjectList:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")

    cluster.request = refuse  # type: ignore[method-assign]
    task = asyncio.create_task(watch.run())
    await asyncio.wait_for(watch.listed.wait(), 5.0)
    assert "could not find the requested resource" in (watch.refused or "")
    task.cancel()


@pytest.mark.parametrize(("optional", "level"), [(True, "INFO"), (False, "WARNING")])
async def test_a_kind_that_a_cluster_may_lack_is_no_reason_for_a_warning(
    optional: bool, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(Watched):
        async def pages(self, *_: Any) -> AsyncIterator[ObjectList]:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
            yield

    caplog.set_level("INFO")
    watch = ChildWatch(
        Refusing(),
        "Service",
        None,
        store=Store(),
        changed=lambda key: None,
        metrics=Metrics(),
        relist_s=300.0,
        optional=optional,
    )
    task = asyncio.create_task(watch.run())
    await asyncio.wait_for(watch.listed.wait(), 30.0)
    task.cancel()
    assert [record.levelname for record in caplog.records if "cannot be read" in record.message] == [level]
