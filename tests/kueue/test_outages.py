"""The operator or Kueue is down at a point of an experiment's life. Runs last, because it disturbs the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import end
from hack.testbed.kube_api import eventually
from hack.testbed.kueue import KueueProcess, Queues
from hack.testbed.operator_process import OperatorProcess
from support.queued_experiments import MakeExperiment, condition, consuming, is_true, workload


@pytest.fixture
def small_queue(namespace: Namespace, queues: Queues) -> str:
    """A queue with quota for one experiment."""
    cluster_queue = queues.cluster_queue("all", 6, flavors=(queues.flavor(),))
    return queues.local_queue(namespace.name, cluster_queue)


def restart(operator: OperatorProcess) -> None:
    operator.start(AREAL_KUEUE="true")


@pytest.fixture
def running(small_queue: str, make: MakeExperiment) -> Experiment:
    """An experiment that runs."""
    experiment = make("one", small_queue)
    experiment.until_phase("Running")
    return experiment


def test_a_restart_of_the_operator_changes_nothing(running: Experiment, operator: OperatorProcess) -> None:
    operator.kill()
    restart(operator)
    running.namespace.behave("server", end(0))  # a change that the new operator must have seen
    running.until(lambda now: now["servers"]["ready"] == 0, "the operator works")
    assert running.status["attempt"] == 1
    assert running.status["phase"] == "Running"


def test_an_admission_while_the_operator_is_down_is_seen_later(
    small_queue: str, running: Experiment, make: MakeExperiment, operator: OperatorProcess
) -> None:
    second = make("second", small_queue)
    second.until_reason("Admitted", "Pending")
    operator.kill()
    running.delete()
    eventually(lambda: is_true(workload(second), "Admitted"), "Kueue admits it")
    restart(operator)
    assert second.until_phase("Running")["attempt"] == 1


def test_an_eviction_while_the_operator_is_down_is_carried_out_later(
    namespace: Namespace, small_queue: str, running: Experiment, make: MakeExperiment, operator: OperatorProcess
) -> None:
    second = make("second", small_queue)
    second.until_reason("Admitted", "Pending")
    operator.kill()
    namespace.api.patch("Workload", namespace.name, "one-run", {"spec": {"active": False}})
    eventually(lambda: is_true(workload(running), "Evicted"), "Kueue evicts it")
    assert is_true(workload(running), "QuotaReserved")
    restart(operator)
    running.until_phase("Queued")
    second.until_phase("Running")


def test_the_end_of_a_run_while_the_operator_is_down_is_reported_later(
    namespace: Namespace, running: Experiment, operator: OperatorProcess
) -> None:
    operator.kill()
    namespace.behave("trainer", end(0))
    eventually(lambda: any(pod["status"]["phase"] == "Succeeded" for pod in namespace.list("Pod")), "the trainer ends")
    restart(operator)
    running.until_phase("Succeeded")
    eventually(lambda: condition(workload(running), "Finished").get("reason") == "Succeeded", "the end is reported")


def test_while_kueue_is_down_nothing_starts_and_what_runs_goes_on(
    namespace: Namespace, small_queue: str, running: Experiment, make: MakeExperiment, kueue: KueueProcess
) -> None:
    kueue.kill()
    try:
        late = make("late", small_queue)
        late.until(lambda now: "failed calling webhook" in now.get("message", ""), "the reason")
        assert (late.status["phase"], consuming(late)) == ("Queued", [])
        assert running.status["phase"] == "Running"
        namespace.behave("trainer", end(0))
        running.until_phase("Succeeded")
    finally:
        kueue.start()
    late.until_phase("Succeeded", 90.0)
    eventually(lambda: condition(workload(running), "Finished").get("reason") == "Succeeded", "reported", 90.0)


@pytest.fixture
def managing_kueue(kueue: KueueProcess) -> Iterator[None]:
    """Kueue manages Jobs and pods without a queue, too, as docs/queueing.md describes."""
    selector = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "kueue-system"]}
    kueue.kill()
    kueue.start(manageJobsWithoutQueueName=True, managedJobsNamespaceSelector={"matchExpressions": [selector]})
    yield
    kueue.kill()
    kueue.start()


def test_children_are_not_queued_a_second_time(
    namespace: Namespace, queues: Queues, make: MakeExperiment, managing_kueue: None
) -> None:
    cluster_queue = queues.cluster_queue("all", 6, flavors=(queues.flavor(),))
    queues.local_queue(namespace.name, cluster_queue, "default")  # the default of everything that names no queue
    experiment = make("one", "default", servers__replicas=2, servers__autoscale={"min": 1, "max": 2})
    experiment.until_phase("Running")
    experiment.until(lambda now: now["servers"]["ready"] == 2, "a borrowed server runs, too")
    names = [obj["metadata"]["name"] for obj in namespace.list("Workload")]
    assert sorted(names) == ["one-borrow-1", "one-run"]
    for kind in ("Job", "StatefulSet", "Pod"):
        for obj in namespace.list(kind):
            assert "kueue.x-k8s.io/queue-name" not in (obj["metadata"].get("labels") or {})
    namespace.behave("trainer", end(0))
    experiment.until_phase("Succeeded")


def test_pods_that_kueue_waits_for_in_vain_are_evicted_and_queued_again(
    namespace: Namespace, small_queue: str, make: MakeExperiment, kueue: KueueProcess
) -> None:
    kueue.kill()
    strategy = {"backoffBaseSeconds": 1, "timestamp": "Eviction"}
    kueue.start(waitForPodsReady={"timeout": "3s", "requeuingStrategy": strategy})
    try:
        experiment = make("one", small_queue, servers__nodeSelector={"no": "node"})
        experiment.until(lambda now: now.get("attempt") == 2, "it was evicted, and admitted again", 60.0)
        assert experiment.status["restarts"] == 0
        assert namespace.events("PodsReadyTimeout")
        experiment.delete()
    finally:
        kueue.kill()
        kueue.start()
