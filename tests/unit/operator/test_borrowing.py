"""Borrowed servers of a run in a queue: their Workloads, their StatefulSets, and the reasons that they wait for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from areal_api.resource_names import SERVER, TRAINER, borrowed_labels, borrowed_server
from areal_operator import transitions
from areal_operator.autoscale import SETTLE, SUSTAINED, History, Sample
from areal_operator.clock import show
from areal_operator.manifests.base import Manifest
from areal_operator.observed import ExperimentState, KueueObjects, Object, Observed
from areal_operator.plan import Plan, plan
from areal_operator.queueing import kueue
from areal_operator.queueing.report import Report
from areal_operator.queueing.workload import GANG
from support.operator_objects import NOW, UID, claim, continued, job, later, pod, server_set, terminating
from support.queued_objects import (
    ADMITTED,
    ENABLED,
    FLAVORS,
    KNOWN,
    PREEMPTED,
    RESERVED,
    admitted,
    decide_queued,
    queued_state,
    said,
)

SCALE = {"min": 1, "max": 4, "priorityClassName": "spot"}
ELASTIC = {"servers__replicas": 3, "servers__autoscale": SCALE}
SPOT = {"spec": {"nodeLabels": {"gpu": "spot"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}}
READABLE = replace(KNOWN, flavors={**FLAVORS, "spot": SPOT}, borrowed_priority=-5)
PENDING = said(kueue.QUOTA_RESERVED, "False", "Pending", "insufficient unused quota, 1 more needed")
NOT_NEEDED = Sample(0.0, 0.0)


def gang(of: ExperimentState) -> Object:
    return admitted(of, servers=1)


def observed(of: ExperimentState, *more: Object) -> tuple[Object, ...]:
    """The objects of a run of one guaranteed server and the trainer, and ``more``."""
    return (gang(of), server_set(), claim(), job(1), pod(SERVER), pod(TRAINER), *more)


def running(**changes: Any) -> ExperimentState:
    """A run whose gang is admitted, and of which nothing else was decided yet."""
    fresh = queued_state(**{**ELASTIC, **changes})
    begun = continued(fresh, decide_queued(fresh, gang(fresh), known=READABLE))
    return continued(begun, decide_queued(begun, *observed(fresh), known=READABLE))


def decide(given: ExperimentState, *more: Object, known: KueueObjects = READABLE, **changes: Any) -> Plan:
    fresh = queued_state(**ELASTIC)
    return decide_queued(given, *observed(fresh, *more), known=known, **changes)


def manifests(made: Plan, kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in made.objects if one["kind"] == kind}


def workload(number: int, *conditions: Object, flavor: str | None = None, **spec: Any) -> Object:
    """The stored Workload of a borrowed server; with ``flavor`` it holds quota of it."""
    made = manifests(decide(running()), kueue.WORKLOAD)[borrowed_server("case", 1)]
    status: Object = {"conditions": list(conditions)}
    if flavor is not None:
        assignment = {"name": "servers", "count": 1, "flavors": {"nvidia.com/gpu": flavor}}
        status["admission"] = {"clusterQueue": "all", "podSetAssignments": [assignment]}
    metadata = {
        "name": borrowed_server("case", number),
        "namespace": "ns",
        "uid": f"workload-{number}",
        "resourceVersion": "7",
        "labels": {"areal.dev/borrowed": str(number)},
        "annotations": {GANG: made["metadata"]["annotations"][GANG]},
        "ownerReferences": [{"uid": UID, "controller": True}],
    }
    body = kueue.slim_workload({"spec": {**made["spec"], **spec}, "status": status})
    return {"kind": kueue.WORKLOAD, "metadata": metadata, **body}


def lent(number: int, *more: Object, flavor: str = "spot") -> Object:
    """An admitted Workload."""
    return workload(number, *ADMITTED, *more, flavor=flavor)


def stateful_set(number: int) -> Object:
    metadata = {"name": borrowed_server("case", number), "uid": f"set-{number}"}
    return {
        "kind": "StatefulSet",
        "metadata": {**metadata, "labels": borrowed_labels("case", number)},
        "status": {},
    }


def server(number: int) -> Object:
    """A ready pod of a borrowed server."""
    made = pod(SERVER, number)
    name = f"{borrowed_server('case', number)}-{number}"
    ready = [*made["status"]["conditions"], {"type": "PodScheduled", "status": "True"}]
    metadata = {**made["metadata"], "name": name, "uid": name, "labels": borrowed_labels("case", number)}
    return {**made, "metadata": metadata, "status": {**made["status"], "conditions": ready}}


def test_the_gang_is_that_of_the_guaranteed_servers() -> None:
    made = decide_queued(queued_state(**ELASTIC))
    (only,) = manifests(made, kueue.WORKLOAD).values()
    assert [(one["name"], one["count"], one.get("minCount")) for one in only["spec"]["podSets"]] == [
        ("servers", 1, None),
        ("trainer", 1, None),
    ]


def test_each_borrowed_server_asks_for_quota_and_has_no_pod_before() -> None:
    made = decide(running())
    asked = manifests(made, kueue.WORKLOAD)
    assert list(asked) == ["case-borrow-1", "case-borrow-2"]
    spec = asked["case-borrow-2"]["spec"]
    assert spec["queueName"] == "team-a"
    assert [(one["name"], one["count"]) for one in spec["podSets"]] == [("servers", 1)]
    assert spec["priorityClassRef"] == {"group": "scheduling.k8s.io", "kind": "PriorityClass", "name": "spot"}
    assert spec["priority"] == -5
    assert list(manifests(made, "StatefulSet")) == ["case-server"]
    assert made.status.autoscale is not None
    assert made.status.autoscale.admitted == 0
    assert made.status.autoscale.queue == "server 1: queue team-a: Kueue has not looked at it yet"


def test_without_a_class_for_borrowed_servers_that_of_the_experiment_holds() -> None:
    labels = {kueue.QUEUE_LABEL: "team-a", kueue.PRIORITY_LABEL: "urgent"}
    known = replace(READABLE, priority=900, borrowed_priority=None)
    scale = {"servers__replicas": 2, "servers__autoscale": {"min": 1, "max": 4}}
    fresh = queued_state(labels=labels, **scale)
    main = manifests(decide_queued(fresh, known=known), kueue.WORKLOAD)["case-run"]
    stored = gang(queued_state(**scale))
    stored["metadata"]["annotations"] = {GANG: main["metadata"]["annotations"][GANG]}
    begun = continued(fresh, decide_queued(fresh, stored, known=known))
    made = decide_queued(begun, stored, server_set(), claim(), job(1), known=known)
    spec = manifests(made, kueue.WORKLOAD)["case-borrow-1"]["spec"]
    assert spec["priorityClassRef"]["kind"] == "WorkloadPriorityClass"
    assert spec["priority"] == 900


def test_an_admitted_server_runs_where_its_own_workload_was_placed() -> None:
    made = decide(running(), lent(2), workload(1, PENDING))
    sets = manifests(made, "StatefulSet")
    assert list(sets) == ["case-server", "case-borrow-2"]
    template = sets["case-borrow-2"]["spec"]["template"]["spec"]
    assert template["nodeSelector"] == {"gpu": "spot"}
    assert [one["key"] for one in template["tolerations"] if one["key"] in ("gpu", "spot")] == ["spot"]
    assert sets["case-server"]["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "a100"}
    assert made.borrowed == {2: Report(pods_ready=False)}
    assert made.status.autoscale is not None
    assert (made.status.autoscale.servers, made.status.autoscale.admitted) == (3, 1)
    text = "server 1: queue team-a: insufficient unused quota, 1 more needed"
    assert made.status.autoscale.queue == text
    (event,) = transitions.between(running().status, made.status)
    assert (event.reason, event.message) == (
        "BorrowedAdmitted",
        f"1 instead of 0 borrowed servers are admitted; {text}",
    )


def test_an_evicted_server_is_removed_at_once_and_hands_its_quota_back_after_its_pods() -> None:
    before = running()
    before = continued(before, decide(before, lent(1), lent(2), server(1), server(2)))
    evicted = lent(1, PREEMPTED)
    made = decide(before, evicted, lent(2), *(stateful_set(n) for n in (1, 2)), server(1), server(2))
    assert list(manifests(made, "StatefulSet")) == ["case-server", "case-borrow-2"]
    assert made.prune == (("StatefulSet", "case-borrow-1"),)
    assert made.borrowed == {2: Report(pods_ready=True)}
    assert (made.status.phase, made.status.attempt) == ("Running", 1)
    (event,) = transitions.between(before.status, made.status)
    assert event.reason == "BorrowedEvicted"
    assert event.message == (
        "1 instead of 2 borrowed servers are admitted; server 1: evicted from queue team-a: "
        "Preempted to accommodate a workload"
    )
    ending = decide(before, evicted, lent(2), stateful_set(2), terminating(server(1)), server(2))
    assert 1 not in ending.borrowed
    ended = decide(before, evicted, lent(2), stateful_set(2), server(2))
    assert ended.borrowed[1] == Report(hand_back=True)
    assert ended.prune == ()


def test_an_eviction_is_shown_before_what_others_wait_for() -> None:
    made = decide(running(), workload(1, PENDING), lent(2, PREEMPTED), server(2))
    assert made.status.autoscale is not None
    assert made.status.autoscale.queue.startswith("server 2: evicted from queue team-a: Preempted")


def test_servers_that_wait_are_neither_created_again_nor_given_up() -> None:
    given = running()
    for seconds in (60, 6000):
        made = decide(given, workload(1, PENDING), workload(2, PENDING), now=later(seconds))
        assert list(manifests(made, kueue.WORKLOAD)) == ["case-borrow-1", "case-borrow-2"]  # unchanged: not written
        assert made.prune == ()
        assert made.status.autoscale is not None
        assert (made.status.autoscale.servers, made.status.autoscale.reason) == (3, "")


def test_a_workload_that_holds_quota_is_not_applied() -> None:
    made = decide(running(), lent(1), workload(2, RESERVED, flavor="spot"))
    assert manifests(made, kueue.WORKLOAD) == {}
    assert list(manifests(made, "StatefulSet")) == ["case-server", "case-borrow-1"]


def test_fewer_servers_keep_those_that_run_and_drop_the_others() -> None:
    given = running()
    known = given.status.autoscale
    assert known is not None
    fewer = known.model_copy(update={"servers": 2, "reason": "ServersIdle", "since": show(NOW)})
    given = replace(given, status=given.status.model_copy(update={"autoscale": fewer}))
    made = decide(given, workload(1, PENDING), lent(2), stateful_set(2), server(2))
    assert list(manifests(made, "StatefulSet")) == ["case-server", "case-borrow-2"]
    assert made.prune == (("Workload", "case-borrow-1"),)


def test_a_workload_that_is_not_wanted_outlives_the_pods_of_its_server() -> None:
    given = running(servers__replicas=1)
    first = decide_queued(given, *observed(given, lent(3), stateful_set(3), server(3)), known=READABLE)
    assert first.prune == (("StatefulSet", "case-borrow-3"),)
    second = decide_queued(given, *observed(given, lent(3), terminating(server(3))), known=READABLE)
    assert second.prune == ()
    third = decide_queued(given, *observed(given, lent(3)), known=READABLE)
    assert third.prune == (("Workload", "case-borrow-3"),)


@pytest.mark.parametrize("end", ["suspended", "gang evicted", "succeeded"])
def test_no_workload_outlives_the_run(end: str) -> None:
    given, fresh = running(), queued_state(**ELASTIC)
    main, borrowed = gang(fresh), (lent(1), workload(2, PENDING))
    if end == "suspended":
        suspended = queued_state(runPolicy__suspend=True, **ELASTIC).experiment
        given = replace(given, experiment=suspended)
    elif end == "gang evicted":
        main = admitted(fresh, PREEMPTED, servers=1)
    else:
        given = replace(given, status=given.status.model_copy(update={"phase": "Succeeded"}))
    made = decide_queued(given, main, *borrowed, stateful_set(1), server(1), known=READABLE)
    assert ("StatefulSet", "case-borrow-1") in made.prune
    assert ("Workload", "case-borrow-1") not in made.prune
    assert ("Workload", "case-borrow-2") in made.prune
    made = decide_queued(given, main, *borrowed, known=READABLE)
    assert {("Workload", "case-borrow-1"), ("Workload", "case-borrow-2")} <= set(made.prune)
    assert manifests(made, "StatefulSet") == {}


def test_a_missing_priority_class_is_named_and_keeps_only_borrowed_servers_from_starting() -> None:
    made = decide(running(), known=replace(READABLE, borrowed_priority=None))
    assert manifests(made, kueue.WORKLOAD) == {}
    assert list(manifests(made, "StatefulSet")) == ["case-server"]
    assert made.status.autoscale is not None
    assert made.status.autoscale.queue == "server 1: PriorityClass spot does not exist; create it, or correct the name"
    assert made.requeue_after_s == ENABLED.waiting_s
    assert made.status.phase == "Running"


def test_a_server_whose_requests_were_edited_is_admitted_again() -> None:
    stale = lent(1)
    stale["metadata"]["annotations"] = {GANG: "other"}
    made = decide(running(), stale, lent(2), stateful_set(1), stateful_set(2), server(1), server(2))
    assert made.prune == (("StatefulSet", "case-borrow-1"),)
    made = decide(running(), stale, lent(2), stateful_set(2), server(2))
    assert made.prune == (("Workload", "case-borrow-1"),)


def test_without_its_queue_a_run_keeps_its_borrowed_servers_and_no_workload() -> None:
    given = running()
    metadata = given.experiment.metadata.model_copy(update={"labels": {}})
    given = replace(given, experiment=given.experiment.model_copy(update={"metadata": metadata}))
    made = decide(given, lent(1), lent(2), stateful_set(1), stateful_set(2), server(1), server(2))
    assert list(manifests(made, "StatefulSet")) == ["case-server", "case-borrow-1", "case-borrow-2"]
    assert {("Workload", f"case-{name}") for name in ("run", "borrow-1", "borrow-2")} == set(made.prune)


def scaled(load: History, *more: Object) -> Plan:
    given, fresh = running(), queued_state(**ELASTIC)
    by_kind: dict[str, list[Object]] = {}
    for obj in observed(fresh, *more):
        by_kind.setdefault(obj["kind"], []).append(obj)
    seen = Observed(by_kind, load=load, kueue=READABLE)
    return plan(given, seen, later(60), settings=ENABLED, api_key="k", gateway_key="g")


def test_servers_that_wait_do_not_keep_the_number_from_falling() -> None:
    load = History(NOW.timestamp(), SETTLE + SUSTAINED, (NOT_NEEDED,) * SUSTAINED, 0, servers=2)
    made = scaled(load, lent(1), stateful_set(1), server(1), workload(2, PENDING))
    assert made.status.autoscale is not None
    assert (made.status.autoscale.servers, made.status.autoscale.reason) == (2, "NotNeeded")
    assert made.prune == (("Workload", "case-borrow-2"),)


def test_while_servers_wait_no_more_are_requested() -> None:
    load = History(NOW.timestamp(), SETTLE + SUSTAINED, (Sample(0.5, 0.0),) * SUSTAINED, 0, servers=2)
    made = scaled(load, lent(1), stateful_set(1), server(1), workload(2, PENDING))
    assert made.status.autoscale is not None
    assert made.status.autoscale.servers == 3
    assert len(manifests(made, kueue.WORKLOAD)) == 1
