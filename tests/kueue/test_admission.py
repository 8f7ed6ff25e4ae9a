"""What starts, when, and where, on a real Kueue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hack.testbed.experiments import Namespace
from hack.testbed.fake_kubelet import NODES, end
from hack.testbed.kube_api import eventually
from hack.testbed.kueue import Queues
from support.queued_experiments import MakeExperiment, condition, consuming, is_true, workload

POOL = "test.areal.dev/pool"


@pytest.fixture
def labelled_nodes(namespace: Namespace) -> Iterator[None]:
    """Each of the two nodes is a separate pool."""
    for name in NODES:
        namespace.api.patch("Node", None, name, {"metadata": {"labels": {POOL: name}}})
    yield
    for name in NODES:
        namespace.api.patch("Node", None, name, {"metadata": {"labels": {POOL: None}}})


def nodes_of(namespace: Namespace, experiment: str) -> set[str]:
    """The nodes of an experiment's pods."""
    pods = [pod for pod in namespace.list("Pod") if pod["metadata"]["name"].startswith(f"{experiment}-")]
    return {pod["spec"].get("nodeName", "none") for pod in pods}


def test_quota_for_one_and_a_half_experiments_runs_them_one_after_the_other(
    namespace: Namespace, queues: Queues, make: MakeExperiment
) -> None:
    cluster_queue = queues.cluster_queue("all", 9, flavors=(queues.flavor(),))
    queue = queues.local_queue(namespace.name, cluster_queue)
    first = make("first", queue)
    first.until_phase("Running")
    assert first.condition("Admitted")["message"] == f"admitted by ClusterQueue {cluster_queue}"
    second = make("second", queue)
    status = second.until(lambda now: "insufficient unused quota" in now.get("message", ""), "Kueue's message")
    assert status["phase"] == "Queued"
    assert second.condition("Admitted")["reason"] == "Pending"
    assert consuming(second) == []
    eventually(lambda: is_true(workload(first), "PodsReady"), "readiness is reported")
    namespace.behave("trainer", end(0))
    first.until_phase("Succeeded")
    eventually(lambda: condition(workload(first), "Finished").get("reason") == "Succeeded", "the end is reported")
    second.until_phase("Succeeded")


def test_each_queue_has_its_own_quota_and_flavor(
    namespace: Namespace, queues: Queues, make: MakeExperiment, labelled_nodes: None
) -> None:
    for node in NODES:
        flavor = queues.flavor(node, nodeLabels={POOL: node})
        queue = queues.local_queue(namespace.name, queues.cluster_queue(node, 6, flavors=(flavor,)), node)
        make(node, queue).until_phase("Running")
        eventually(lambda node=node: nodes_of(namespace, node) == {node}, f"all pods are on {node}")


def test_a_queue_borrows_what_the_others_of_its_cohort_leave(
    namespace: Namespace, queues: Queues, make: MakeExperiment
) -> None:
    flavor, cohort = queues.flavor(), queues.named("cohort")
    reclaim = {"reclaimWithinCohort": "Any"}
    lender = queues.cluster_queue("lender", 6, flavors=(flavor,), cohortName=cohort, preemption=reclaim)
    borrower = queues.cluster_queue("borrower", 2, flavors=(flavor,), cohortName=cohort)
    borrowing = make("borrowing", queues.local_queue(namespace.name, borrower, "borrower"))
    borrowing.until_phase("Running")
    owner = make("owner", queues.local_queue(namespace.name, lender, "lender"))
    owner.until_phase("Running")
    status = borrowing.until_phase("Queued")
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    owner.delete()
    status = borrowing.until(lambda now: now.get("phase") == "Running", "it borrows again")
    assert status["attempt"] == 2


def test_fewer_servers_than_wanted_are_admitted_down_to_the_minimum(
    namespace: Namespace, queues: Queues, make: MakeExperiment
) -> None:
    queue = queues.local_queue(namespace.name, queues.cluster_queue("all", 8, flavors=(queues.flavor(),)))
    few = make("few", queue, servers__replicas=8, servers__minReplicas=2)
    status = few.until_phase("Running")
    assert status["servers"]["desired"] == 3  # 3 × 2 CPUs and 2 of the trainer
    assert "with 3 of 8 servers" in few.condition("Admitted")["message"]
    few.edit(servers__replicas=2)
    eventually(
        lambda: workload(few)["status"].get("reclaimablePods") == [{"name": "servers", "count": 1}], "quota is freed"
    )


def test_a_queue_that_does_not_exist_is_named_before_anything_starts(make: MakeExperiment) -> None:
    lost = make("lost", "nowhere")
    lost.until(lambda now: now.get("message") == "queue nowhere: LocalQueue nowhere doesn't exist", "the reason")
    assert lost.condition("Admitted")["reason"] == "Inadmissible"
    assert consuming(lost) == []


def test_quota_that_can_never_hold_the_gang_is_named_before_anything_starts(
    namespace: Namespace, queues: Queues, make: MakeExperiment
) -> None:
    queue = queues.local_queue(namespace.name, queues.cluster_queue("all", 5, flavors=(queues.flavor(),)))
    large = make("large", queue)
    large.until(lambda now: "maximum capacity" in now.get("message", ""), "the reason")
    assert consuming(large) == []


def test_a_priority_class_that_does_not_exist_is_named(
    namespace: Namespace, queues: Queues, make: MakeExperiment
) -> None:
    queue = queues.local_queue(namespace.name, queues.cluster_queue("all", 9, flavors=(queues.flavor(),)))
    urgent = make("urgent", queue, priority=queues.named("urgent"))
    urgent.until_reason("Admitted", "NoPriorityClass")
    assert workload(urgent) == {}
    queues.priority("urgent", 100)
    urgent.until_phase("Running")
    assert workload(urgent)["spec"]["priority"] == 100
