"""Warnings of namespaces: one request for all experiments that wait, and which of them a change reconciles."""

from __future__ import annotations

import asyncio

from areal_operator.cluster import ApiError
from areal_operator.observed import Object
from areal_operator.warning_events import NamespaceWarnings
from support.memory_cluster import MemoryCluster

A, B = ("ns", "a"), ("ns", "b")


def warn(cluster: MemoryCluster, uid: str, message: str) -> None:
    metadata = {"name": f"{uid}-{message}", "namespace": "ns"}
    involved = {"uid": uid}
    event: Object = {"kind": "Event", "metadata": metadata, "involvedObject": involved, "type": "Warning"}
    cluster.add({**event, "reason": "FailedCreate", "message": message})


def requests(cluster: MemoryCluster) -> int:
    return cluster.requests.count(("GET", "Event", ""))


async def test_experiments_that_wait_at_the_same_time_share_one_request() -> None:
    cluster = MemoryCluster()
    warn(cluster, "pod-a", "quota")
    warnings = NamespaceWarnings(cluster, max_age_s=60.0)
    about_a, about_b = await asyncio.gather(warnings.about(A, ["pod-a"]), warnings.about(B, ["pod-b"]))
    assert [warning.message for warning in about_a] == ["quota"]
    assert about_b == []
    assert requests(cluster) == 1


async def test_only_experiments_whose_warnings_have_changed_are_reported() -> None:
    cluster = MemoryCluster()
    warnings = NamespaceWarnings(cluster, max_age_s=60.0)
    await warnings.about(A, ["pod-a"])
    await warnings.about(B, ["pod-b"])
    assert await warnings.changed() == []
    warn(cluster, "pod-b", "quota")
    warn(cluster, "pod-of-others", "quota")
    assert await warnings.changed() == [B]
    await warnings.about(B, ["pod-b"])
    assert await warnings.changed() == []


async def test_nothing_is_read_while_no_experiment_waits() -> None:
    cluster = MemoryCluster()
    warnings = NamespaceWarnings(cluster, max_age_s=60.0)
    await warnings.about(A, ["pod-a"])
    warnings.forget(A)
    before = requests(cluster)
    assert await warnings.changed() == []
    assert requests(cluster) == before


async def test_a_namespace_whose_events_cannot_be_read_has_no_warnings() -> None:
    cluster = MemoryCluster()

    async def refuse(*_: object) -> list[object]:
        raise ApiError(403, "Forbidden", "events is forbidden")

    cluster.warning_events = refuse  # type: ignore[assignment,method-assign]
    assert await NamespaceWarnings(cluster, max_age_s=60.0).about(A, ["pod-a"]) == []
