"""Borrowed servers with the real Kueue: admitted, preempted and readmitted one by one."""

from __future__ import annotations

import pytest

from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.kube_api import Object, eventually
from hack.testbed.kueue import Queues
from support.queued_experiments import MakeExperiment, is_true, workload

PREEMPTING = {"withinClusterQueue": "LowerPriority"}
SMALL = {"requests": {"cpu": "1"}}
WITHIN_S = 60.0  # two admissions one after the other


@pytest.fixture
def queue(namespace: Namespace, queues: Queues) -> str:
    """A queue with quota for a gang of one server and the trainer, and for one borrowed server."""
    cluster_queue = queues.cluster_queue("all", 6, flavors=(queues.flavor(),), preemption=PREEMPTING)
    return queues.local_queue(namespace.name, cluster_queue)


@pytest.fixture
def elastic(queues: Queues, queue: str, make: MakeExperiment) -> Experiment:
    """A run that wants two borrowed servers, and has one of them."""
    scale = {"min": 1, "max": 3, "priorityClassName": queues.pod_priority("spot", -10)}
    experiment = make("low", queue, servers__replicas=3, servers__autoscale=scale)
    experiment.until_phase("Running", WITHIN_S)
    experiment.until(lambda now: now["servers"]["ready"] == 2, "one borrowed server is ready", WITHIN_S)
    return experiment


def borrowed(experiment: Experiment, kind: str = "StatefulSet") -> dict[str, Object]:
    """Objects of borrowed servers by name."""
    objects = {obj["metadata"]["name"]: obj for obj in experiment.namespace.list(kind)}
    return {name: obj for name, obj in objects.items() if name.startswith(f"{experiment.name}-borrow-")}


def uids(objects: dict[str, Object]) -> dict[str, str]:
    return {name: obj["metadata"]["uid"] for name, obj in objects.items()}


def test_borrowed_servers_run_as_far_as_there_is_quota(elastic: Experiment) -> None:
    assert [one["name"] for one in workload(elastic)["spec"]["podSets"]] == ["servers", "trainer"]
    assert [one["count"] for one in workload(elastic)["spec"]["podSets"]] == [1, 1]
    asked = borrowed(elastic, "Workload")
    assert sorted(asked) == ["low-borrow-1", "low-borrow-2"]
    (running,) = borrowed(elastic)
    assert [name for name, one in asked.items() if is_true(one, "Admitted")] == [running]
    assert asked[running]["spec"]["priority"] == -10
    eventually(lambda: is_true(borrowed(elastic, "Workload")[running], "PodsReady"), "readiness is reported")
    status = elastic.until(lambda now: "insufficient unused quota" in now["autoscale"]["queue"], "Kueue's message")
    assert (status["autoscale"]["servers"], status["autoscale"]["admitted"]) == (3, 1)
    (event,) = elastic.namespace.events("BorrowedAdmitted")
    assert event["message"].startswith("1 instead of 0 borrowed servers are admitted")


def test_a_preempted_borrowed_server_goes_alone_and_comes_back(
    namespace: Namespace, queues: Queues, queue: str, elastic: Experiment, make: MakeExperiment
) -> None:
    before = uids(borrowed(elastic, "Workload"))
    priority = queues.priority("high", 1000)
    small = {"servers__resources": SMALL, "trainer__resources": SMALL}
    high = make("high", queue, priority=priority, servers__replicas=1, **small)
    high.until_phase("Running")
    status = elastic.until(lambda now: now["servers"]["ready"] == 1, "the borrowed server is given back")
    assert (status["phase"], status["attempt"], status["autoscale"]["admitted"]) == ("Running", 1, 0)
    assert borrowed(elastic) == {}
    (event,) = eventually(lambda: namespace.events("BorrowedEvicted"), "an Event explains it")
    assert "evicted from queue team: Preempted to accommodate" in event["message"]
    assert uids(borrowed(elastic, "Workload")) == before  # they wait again, and were not created a second time
    high.delete()
    elastic.until(lambda now: now["servers"]["ready"] == 2, "a borrowed server is back", WITHIN_S)
    assert (elastic.status["attempt"], len(borrowed(elastic))) == (1, 1)
    assert uids(borrowed(elastic, "Workload")) == before


def test_quota_is_not_handed_back_before_the_pods_have_ended(
    namespace: Namespace, queue: str, elastic: Experiment, make: MakeExperiment
) -> None:
    (running,) = borrowed(elastic)
    namespace.kubelet.stuck.add(namespace.name)
    namespace.api.patch("Workload", namespace.name, running, {"spec": {"active": False}})
    eventually(lambda: borrowed(elastic) == {}, "the server is removed at once")
    assert is_true(borrowed(elastic, "Workload")[running], "QuotaReserved")
    namespace.kubelet.stuck.discard(namespace.name)
    other = elastic.until(lambda now: now["servers"]["ready"] == 2, "the other is admitted", WITHIN_S)
    assert (other["phase"], other["attempt"]) == ("Running", 1)
    assert running not in borrowed(elastic)


def test_no_borrowed_workload_is_left_when_the_run_is_suspended_or_its_gang_evicted(
    namespace: Namespace, elastic: Experiment
) -> None:
    elastic.edit(runPolicy__suspend=True)
    elastic.until_phase("Suspended")
    eventually(lambda: not namespace.list("Workload"), "no Workload is left")
    elastic.edit(runPolicy__suspend=False)
    elastic.until(lambda now: now["servers"]["ready"] == 2, "it has borrowed again", WITHIN_S)
    namespace.api.patch("Workload", namespace.name, "low-run", {"spec": {"active": False}})
    elastic.until_phase("Queued")
    eventually(lambda: borrowed(elastic, "Workload") == {}, "only the gang waits")
    assert len(namespace.list("Workload")) == 1
