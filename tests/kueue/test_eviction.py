"""Eviction, suspension and resumption with the real Kueue."""

from __future__ import annotations

import pytest

from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.kube_api import eventually
from hack.testbed.kueue import Queues
from support.queued_experiments import MakeExperiment, condition, consuming, is_true, workload

PREEMPTING = {"withinClusterQueue": "LowerPriority"}


@pytest.fixture
def small_queue(namespace: Namespace, queues: Queues) -> str:
    """A queue with quota for one experiment, where a higher priority preempts a lower one."""
    cluster_queue = queues.cluster_queue("all", 6, flavors=(queues.flavor(),), preemption=PREEMPTING)
    return queues.local_queue(namespace.name, cluster_queue)


def activate(experiment: Experiment, active: bool) -> None:
    namespace = experiment.namespace
    patch = {"spec": {"active": active}}
    namespace.api.patch("Workload", namespace.name, f"{experiment.name}-run", patch)


def test_a_run_that_is_preempted_frees_its_quota_after_its_pods_and_resumes(
    namespace: Namespace, queues: Queues, small_queue: str, make: MakeExperiment
) -> None:
    low = make("low", small_queue)
    low.until_phase("Running")
    namespace.kubelet.stuck.add(namespace.name)
    high = make("high", small_queue, priority=queues.priority("high", 1000))
    low.until_reason("Suspended", "Suspending")
    eventually(lambda: not namespace.names("Job") and not namespace.names("StatefulSet"), "the low one is stopped")
    assert is_true(workload(low), "QuotaReserved")  # its pods have not ended
    assert high.status.get("attempt", 0) == 0
    namespace.kubelet.stuck.discard(namespace.name)
    high.until_phase("Running")
    status = low.until_phase("Queued")
    assert "reempt" in namespace.events("Preempted")[0]["message"]
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    younger = make("younger", small_queue)
    younger.until_reason("Admitted", "Pending")
    high.delete()
    status = low.until_phase("Running")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 0)
    assert younger.status["phase"] == "Queued"


def test_a_deactivated_workload_stops_its_run_until_it_is_active_again(small_queue: str, make: MakeExperiment) -> None:
    experiment = make("one", small_queue)
    experiment.until_phase("Running")
    activate(experiment, False)
    status = experiment.until_phase("Queued")
    assert "set its spec.active to true" in status["message"]
    eventually(lambda: not is_true(workload(experiment), "QuotaReserved"), "the quota is handed back")
    activate(experiment, True)
    status = experiment.until_phase("Running")
    assert (status["attempt"], status["restarts"]) == (2, 0)


def test_a_suspended_run_holds_no_quota(small_queue: str, make: MakeExperiment) -> None:
    first = make("first", small_queue)
    first.until_phase("Running")
    second = make("second", small_queue)
    first.edit(runPolicy__suspend=True)
    first.until_phase("Suspended")
    second.until_phase("Running")
    first.edit(runPolicy__suspend=False)
    first.until_phase("Queued")
    second.delete()
    assert first.until_phase("Running")["attempt"] == 2


def test_deleting_an_experiment_admits_the_next(small_queue: str, make: MakeExperiment) -> None:
    first = make("first", small_queue)
    first.until_phase("Running")
    second = make("second", small_queue)
    second.until_reason("Admitted", "Pending")
    first.delete()
    second.until_phase("Running")
    eventually(lambda: workload(first) == {}, "the Workload is gone, too")


def test_a_deleted_workload_is_queued_again(namespace: Namespace, small_queue: str, make: MakeExperiment) -> None:
    experiment = make("one", small_queue)
    experiment.until_phase("Running")
    namespace.api.delete("Workload", namespace.name, "one-run")
    status = experiment.until(lambda now: now.get("attempt") == 2 and now.get("phase") == "Running", "it runs again")
    assert status["restarts"] == 0


def test_a_run_that_needs_more_is_queued_again(small_queue: str, make: MakeExperiment) -> None:
    experiment = make("one", small_queue)
    experiment.until_phase("Running")
    experiment.edit(trainer__resources={"requests": {"cpu": "3"}})
    experiment.until(lambda now: "maximum capacity" in now.get("message", ""), "the larger gang does not fit")
    assert not [name for name in consuming(experiment) if not name.endswith("-run")]
    experiment.edit(trainer__resources={"requests": {"cpu": "1"}})
    experiment.until_phase("Running")


def test_a_failed_run_is_reported_as_failed(namespace: Namespace, small_queue: str, make: MakeExperiment) -> None:
    experiment = make("one", small_queue, runPolicy__activeDeadlineSeconds=3)
    experiment.until_phase("Failed")
    eventually(lambda: condition(workload(experiment), "Finished").get("reason") == "Failed", "the end is reported")
