"""Whole reconciles of an experiment in a queue, with an API server in memory and Kueue's part played by the test."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from areal_api import resource_names
from areal_api.experiment import KIND
from areal_operator.cluster import CHILD_KINDS, ApiError
from areal_operator.experiments import Experiments
from areal_operator.observed import Object
from areal_operator.queueing import kueue
from areal_operator.queueing.client import Queue
from areal_operator.queueing.positions import Positions
from areal_operator.queueing.report import Report
from areal_operator.reconcile import Reconciler
from areal_operator.store import Store
from areal_operator.warning_events import NamespaceWarnings
from hack.testbed.experiment_case import Case
from support.memory_cluster import MemoryCluster
from support.operator_objects import NOW, exited, pod
from support.queued_objects import ADMITTED, ENABLED, FLAVORS, PREEMPTED, QUEUE

KEY = ("ns", "case")
SELECTOR = f"{resource_names.MANAGED_BY}={resource_names.OPERATOR}"


class World:
    """One experiment in a queue, and an operator that may be restarted."""

    def __init__(self, servers: Object | None = None, **labels: str) -> None:
        self.cluster = MemoryCluster()
        self.refused: str | None = None
        body = Case("", {}).experiment()
        body["spec"]["servers"] = {**body["spec"].get("servers", {}), **(servers or {})}
        named = {"name": "case", "namespace": "ns", "labels": {kueue.QUEUE_LABEL: QUEUE, **labels}}
        self.cluster.add({**body, "kind": KIND, "metadata": named})
        for name, flavor in FLAVORS.items():
            self.cluster.add({**flavor, "kind": kueue.FLAVOR, "metadata": {"name": name, "namespace": ""}})
        self.restart()

    def restart(self) -> None:
        """A new operator process."""
        self.store, self.experiments = Store(), Experiments()
        self.positions = Positions(self.cluster)
        self.reconciler = Reconciler(
            self.cluster,
            self.store,
            self.experiments,
            NamespaceWarnings(self.cluster, max_age_s=5.0),
            settings=ENABLED,
            root_key=b"root",
            now=lambda: NOW,
            positions=self.positions,
            refused=lambda kind, namespace: self.refused,
        )

    async def run(self, times: int = 3) -> float | None:
        """Reconcile several times with an up-to-date cache; returns the last delay."""
        delay: float | None = None
        for _ in range(times):
            for kind in (*CHILD_KINDS, kueue.WORKLOAD):
                listed = await self.cluster.list(kind, None, SELECTOR)
                self.store.replace(kind, listed.items, listed.version)
            for body in (await self.cluster.list(KIND, None)).items:
                self.experiments.put(body)
            delay = await self.reconciler.reconcile(KEY)
        return delay

    def says(self, *conditions: Object, **status: Any) -> None:
        """Kueue writes the status of the Workload."""
        self.cluster.edit(kueue.WORKLOAD, "ns", "case-run", {"status": {"conditions": list(conditions), **status}})

    def admits(self, *more: Object, name: str = "case-run") -> None:
        """Kueue admits a Workload."""
        assigned = [
            {"name": one["name"], "count": one["count"], "flavors": {"nvidia.com/gpu": "a100"}}
            for one in self.cluster.objects[kueue.WORKLOAD, "ns", name]["spec"]["podSets"]
        ]
        status = {"admission": {"clusterQueue": "all", "podSetAssignments": assigned}, "conditions": [*ADMITTED, *more]}
        self.cluster.edit(kueue.WORKLOAD, "ns", name, {"status": status})

    def adds(self, obj: Object) -> None:
        """Another controller creates a pod."""
        self.cluster.add({**obj, "metadata": {**obj["metadata"], "namespace": "ns"}})

    @property
    def workload(self) -> Object:
        return dict(self.cluster.objects[kueue.WORKLOAD, "ns", "case-run"])

    @property
    def status(self) -> Object:
        return dict(self.cluster.objects[KIND, "ns", "case"].get("status") or {})

    def truth(self, kind: str) -> tuple[str, str] | None:
        """Status and reason of a condition of the Workload."""
        conditions = self.workload["status"]["conditions"]
        return next(((one["status"], one["reason"]) for one in conditions if one["type"] == kind), None)


async def test_an_experiment_waits_with_one_object_and_starts_when_admitted() -> None:
    world = World()
    await world.run()
    assert {kind for kind, _, _ in world.cluster.objects} == {KIND, kueue.FLAVOR, kueue.WORKLOAD, "Event"}
    (owner,) = world.workload["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["controller"]) == (KIND, True)
    before = len(world.cluster.writes)
    await world.run()
    assert world.cluster.writes[before:] == []
    world.admits()
    await world.run()
    assert world.cluster.objects["Job", "ns", "case-trainer-1"]
    assert world.status["phase"] == "Starting"
    assert world.truth(kueue.PODS_READY) == ("False", "WaitForStart")
    before = len(world.cluster.writes)
    world.restart()
    await world.run()
    assert world.cluster.writes[before:] == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_preempted_experiment_hands_its_quota_back_after_its_pods(restarted: bool) -> None:
    world = World()
    await world.run()
    world.admits()
    await world.run()
    world.adds(pod(resource_names.SERVER))
    world.admits(PREEMPTED)
    if restarted:
        world.restart()
    await world.run()
    assert world.cluster.names("Job") == world.cluster.names("StatefulSet") == []
    assert "admission" in world.workload["status"]
    world.cluster.remove("Pod", "ns", "case-server-0")
    if restarted:
        world.restart()
    await world.run()
    assert world.status["phase"] == "Queued"
    assert "admission" not in world.workload["status"]
    assert world.truth(kueue.QUOTA_RESERVED) == ("False", "Pending")
    assert world.truth(kueue.ADMITTED) == ("False", "NoReservation")
    assert world.truth(kueue.REQUEUED) == ("True", "Preempted")
    world.admits()
    await world.run()
    assert (world.status["attempt"], world.cluster.names("Job")) == (2, ["case-trainer-2"])


async def test_a_finished_experiment_says_so() -> None:
    world = World()
    await world.run()
    world.admits()
    await world.run()
    world.adds(pod(resource_names.TRAINER, **exited(0)))
    world.cluster.edit(
        "Job", "ns", "case-trainer-1", {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    )
    await world.run()
    assert world.truth(kueue.FINISHED) == ("True", "Succeeded")


async def test_an_edit_that_kueue_makes_at_the_same_time_is_kept() -> None:
    world = World()
    await world.run()
    world.admits()
    await world.run()
    queue = Queue(world.cluster, ENABLED, lambda kind, namespace: None, world.positions)
    stale = copy.deepcopy(world.workload)
    world.admits(PREEMPTED)
    written = await queue.report(stale, Report(pods_ready=True), pods=resource_names.labels("case"), now=NOW)
    assert written is not None
    assert (world.truth(kueue.EVICTED), world.truth(kueue.PODS_READY)) == (("True", "Preempted"), ("True", "Started"))


async def test_quota_is_kept_while_the_api_server_knows_of_a_pod_that_the_watch_has_not_shown() -> None:
    world = World()
    await world.run()
    world.admits(PREEMPTED)
    queue = Queue(world.cluster, ENABLED, lambda kind, namespace: None, world.positions)
    world.adds(pod(resource_names.SERVER))
    assert (
        await queue.report(world.workload, Report(hand_back=True), pods=resource_names.labels("case"), now=NOW) is None
    )
    assert "admission" in world.workload["status"]


async def test_a_report_that_kueue_refuses_is_an_error() -> None:
    world = World()
    await world.run()
    world.admits()
    world.cluster.check = lambda method, obj: ApiError(500, "InternalError", "failed calling webhook")
    queue = Queue(world.cluster, ENABLED, lambda kind, namespace: None, world.positions)
    with pytest.raises(ApiError, match="failed calling webhook"):
        await queue.report(world.workload, Report(pods_ready=True), pods=resource_names.labels("case"), now=NOW)


async def test_a_workload_that_kueue_refuses_is_shown_and_tried_again() -> None:
    world = World()
    text = "failed calling webhook: connection refused"
    world.cluster.check = lambda method, obj: (
        ApiError(500, "InternalError", text) if obj["kind"] == kueue.WORKLOAD else None
    )
    assert await world.run() == ENABLED.waiting_s
    assert text in world.status["message"]
    assert world.status["phase"] == "Queued"
    world.cluster.check = lambda method, obj: None
    await world.run()
    assert world.workload["spec"]["queueName"] == QUEUE


async def test_a_run_is_left_alone_when_a_new_operator_cannot_read_workloads() -> None:
    world = World()
    await world.run()
    world.admits()
    await world.run()
    world.restart()
    world.refused = "the server could not find the requested resource"
    world.cluster.remove(kueue.WORKLOAD, "ns", "case-run")
    assert await world.run() == ENABLED.waiting_s
    assert (world.cluster.names("Job"), world.status["phase"]) == (["case-trainer-1"], "Starting")


async def test_a_priority_class_gives_its_value() -> None:
    world = World(**{kueue.PRIORITY_LABEL: "urgent"})
    world.cluster.add({"kind": kueue.PRIORITY_CLASS, "metadata": {"name": "urgent", "namespace": ""}, "value": 900})
    await world.run()
    assert world.workload["spec"]["priority"] == 900


async def test_an_experiment_without_a_queue_reads_nothing_of_kueue() -> None:
    world = World(**{kueue.QUEUE_LABEL: ""})
    await world.run()
    assert not {kind for _, kind, name in world.cluster.requests if name} & {kueue.FLAVOR, kueue.PRIORITY_CLASS}
    assert world.status["attempt"] == 1


async def test_borrowed_servers_are_queued_once_and_hand_their_quota_back_one_by_one() -> None:
    world = World({"replicas": 3, "autoscale": {"min": 1, "max": 3, "priorityClassName": "spot"}})
    named = {"name": "spot", "namespace": ""}
    world.cluster.add({"kind": kueue.POD_PRIORITY_CLASS, "metadata": named, "value": -5})
    await world.run()
    world.admits()
    await world.run()
    assert world.cluster.names(kueue.WORKLOAD) == ["case-borrow-1", "case-borrow-2", "case-run"]
    world.admits(name="case-borrow-1")
    await world.run()
    assert world.cluster.names("StatefulSet") == ["case-borrow-1", "case-server"]
    before = len(world.cluster.writes)
    world.restart()
    await world.run()
    assert world.cluster.writes[before:] == []
    borrowed = pod(resource_names.SERVER)
    labels = resource_names.borrowed_labels("case", 1)
    world.adds({**borrowed, "metadata": {**borrowed["metadata"], "name": "case-borrow-1-1", "labels": labels}})
    world.adds(pod(resource_names.SERVER))
    world.admits(PREEMPTED, name="case-borrow-1")
    await world.run()
    assert world.cluster.names("StatefulSet") == ["case-server"]
    assert "admission" in world.cluster.objects[kueue.WORKLOAD, "ns", "case-borrow-1"]["status"]
    world.cluster.remove("Pod", "ns", "case-borrow-1-1")
    await world.run()
    status = world.cluster.objects[kueue.WORKLOAD, "ns", "case-borrow-1"]["status"]
    assert "admission" not in status
    assert world.truth(kueue.ADMITTED) == ("True", "Admitted")  # that of the gang
    events = {one["reason"] for (kind, _, _), one in world.cluster.objects.items() if kind == "Event"}
    assert {"BorrowedAdmitted", "BorrowedEvicted"} <= events


async def test_a_borrowed_server_that_kueue_refuses_holds_up_nothing() -> None:
    world = World({"replicas": 2, "autoscale": {"min": 1, "max": 2}})
    await world.run()
    world.admits()
    world.cluster.check = lambda method, obj: (
        ApiError(500, "InternalError", "failed calling webhook")
        if (method, obj["metadata"].get("name")) == ("APPLY", "case-borrow-1")
        else None
    )
    await world.run()
    assert (world.cluster.names("Job"), world.cluster.names("StatefulSet")) == (["case-trainer-1"], ["case-server"])
    world.cluster.check = lambda method, obj: None
    await world.run()
    assert world.cluster.names(kueue.WORKLOAD) == ["case-borrow-1", "case-run"]
