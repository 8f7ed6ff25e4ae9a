"""Positions in queues: one request for all runs of a queue, and which experiments are reconciled after a change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from areal_operator.cluster import ApiError
from areal_operator.observed import Object
from areal_operator.queueing.positions import TOLD, Positions
from support.memory_cluster import MemoryCluster

A, B = ("ns", "a"), ("ns", "b")
PATH = "/apis/visibility.kueue.x-k8s.io/v1beta2/namespaces/ns/localqueues/team/pendingworkloads"


class VisibleQueue(MemoryCluster):
    """A cluster whose Kueue tells the Workloads of one queue in their order."""

    def __init__(self, *workloads: str) -> None:
        super().__init__()
        self.workloads = list(workloads)
        self.refusal: ApiError | None = None
        self.asked: list[tuple[str, Mapping[str, str] | None]] = []

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = "application/json",
    ) -> Any:
        self.asked.append((path, query))
        if self.refusal is not None:
            raise self.refusal
        named = enumerate(self.workloads)
        return {"items": [{"metadata": {"name": name}, "positionInLocalQueue": at} for at, name in named]}


async def test_runs_of_one_queue_share_a_request_and_are_told_their_positions() -> None:
    cluster = VisibleQueue("a-run", "other", "b-run")
    positions = Positions(cluster)
    assert (positions.of(A, "team"), positions.of(B, "team")) == (None, None)
    assert await positions.changed() == [A, B]
    assert cluster.asked == [(PATH, {"limit": str(TOLD)})]
    assert (positions.of(A, "team"), positions.of(B, "team")) == (1, 3)
    assert await positions.changed() == []
    cluster.workloads.remove("other")
    assert await positions.changed() == [B]
    assert positions.of(B, "team") == 2


async def test_nothing_is_read_while_no_run_waits() -> None:
    cluster = VisibleQueue("a-run")
    positions = Positions(cluster)
    positions.of(A, "team")
    positions.forget(A)
    assert await positions.changed() == []
    assert cluster.asked == []


async def test_without_the_visibility_api_positions_are_unknown() -> None:
    cluster = VisibleQueue()
    cluster.refusal = ApiError(404, "NotFound", "the server could not find the requested resource")
    positions = Positions(cluster)
    positions.of(A, "team")
    assert await positions.changed() == []
    assert positions.of(A, "team") is None
