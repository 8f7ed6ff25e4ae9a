"""The operator's decisions: what runs, what is retried, what ends."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.resource_names import SERVER, TRAINER
from areal_api.status import Condition, ExperimentStatus
from areal_operator.diagnosis import Reason
from areal_operator.observed import ExperimentState
from areal_operator.status import find
from support.operator_objects import (
    claim,
    continued,
    decide,
    ended,
    job,
    later,
    leaving,
    manifest,
    named,
    pod,
    server_set,
    state,
)

PREEMPTED = [{"type": "DisruptionTarget", "status": "True"}]
RUNNING = (server_set(), claim(), job(1), pod(SERVER), pod(TRAINER))


def started(**changes: Any) -> ExperimentState:
    """An experiment in its first attempt."""
    fresh = state(**changes)
    return continued(fresh, decide(fresh))


def running(**changes: Any) -> ExperimentState:
    """An experiment whose pods run."""
    begun = started(**changes)
    return continued(begun, decide(begun, *RUNNING))


def condition(status: ExperimentStatus, kind: str) -> Condition:
    found = find(status.conditions, kind)
    assert found is not None
    return found


def test_a_new_experiment_starts_its_first_attempt() -> None:
    plan = decide(state())
    assert (plan.status.phase, plan.status.attempt, plan.status.start_time) == ("Starting", 1, "2026-01-31T12:00:00Z")
    assert [line.split()[0] for line in named(plan)] == [
        "ConfigMap",
        "Secret",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "Service",
        "Service",
        "PodDisruptionBudget",
        "StatefulSet",
        "Job",
    ]
    assert named(plan)[-1] == "Job case-trainer-1"


def test_it_runs_once_the_trainer_and_a_server_are_ready() -> None:
    begun = started()
    assert decide(begun, server_set(), claim(), job(1), pod(TRAINER)).status.phase == "Starting"
    plan = decide(begun, *RUNNING)
    assert (plan.status.phase, plan.status.message, plan.status.servers.summary) == ("Running", "", "1/1")


def test_nothing_changes_while_nothing_happens() -> None:
    steady = running()
    plan = decide(steady, *RUNNING, now=later(3600))
    assert (plan.status, plan.prune, plan.requeue_after_s) == (steady.status, (), None)


def test_it_stays_running_while_a_server_is_replaced_and_says_so() -> None:
    crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting"}}
    bad = pod(SERVER, conditions=[], containerStatuses=[{"name": "server", "state": crash, "restartCount": 3}])
    plan = decide(running(), server_set(), claim(), job(1), bad, pod(TRAINER))
    assert plan.status.phase == "Running"
    assert condition(plan.status, "ServersReady").reason == "CrashLoop"
    assert "back-off restarting" in plan.status.message


def test_a_finished_trainer_succeeds_and_frees_the_servers_but_keeps_its_pod() -> None:
    plan = decide(running(), server_set(), claim(), job(1, "Complete"), pod(SERVER), pod(TRAINER, **ended(0)))
    assert plan.status.phase == "Succeeded"
    assert plan.prune == (("StatefulSet", "case-server"),)
    assert plan.status.completion_time == "2026-01-31T12:00:00Z"
    assert plan.status.servers.summary == "0/0"


def test_a_server_that_drains_is_not_counted_as_one_that_takes_requests() -> None:
    plan = decide(running(), server_set(), claim(), job(1), leaving(pod(SERVER)), pod(TRAINER))
    assert plan.status.servers.summary == "0/1"


def test_a_terminal_phase_stays_when_the_job_is_gone() -> None:
    done = continued(running(), decide(running(), claim(), job(1, "Complete")))
    plan = decide(done, claim(), now=later(9999))
    assert (plan.status.phase, named(plan)) == ("Succeeded", ["PersistentVolumeClaim case-run"])


def test_a_failure_of_ours_counts_and_is_retried_after_a_delay() -> None:
    failed = (server_set(), claim(), job(1, "Failed"), pod(SERVER), pod(TRAINER, **ended(1)))
    plan = decide(running(), *failed, now=later(1))
    assert (plan.status.phase, plan.status.attempt, plan.requeue_after_s) == ("Starting", 1, 9.0)
    assert condition(plan.status, "TrainerRunning").reason == "BackOff"
    plan = decide(running(), *failed, now=later(10))
    assert (plan.status.attempt, plan.status.restarts, plan.status.disruptions) == (2, 1, 0)
    assert named(plan)[-1] == "Job case-trainer-2"


@pytest.mark.parametrize(
    ("failed", "pods"),
    [
        (job(1, "Failed", reason="PodFailurePolicy"), ()),
        (job(1, "Failed"), ()),
        (job(1, "Failed"), (leaving(pod(TRAINER, **ended(143))),)),
        (
            job(1, "Failed"),
            (pod(TRAINER, phase="Failed", conditions=[{"type": "DisruptionTarget", "status": "True"}]),),
        ),
    ],
    ids=["by policy", "pods gone", "pod deleted", "pod preempted"],
)
def test_a_disruption_does_not_count_and_is_retried_at_once(failed: Any, pods: Any) -> None:
    plan = decide(running(runPolicy__backoffLimit=0), server_set(), claim(), failed, pod(SERVER), *pods)
    assert (plan.status.attempt, plan.status.restarts, plan.status.disruptions) == (2, 0, 1)


def test_the_last_restart_is_the_end() -> None:
    failed = (claim(), job(1, "Failed"), pod(TRAINER, **ended(1, message="ValueError: x\n")))
    plan = decide(running(runPolicy__backoffLimit=0), *failed)
    assert plan.status.phase == "Failed"
    assert "ValueError: x; that was the last of 0 restarts" in plan.status.message


def test_what_a_user_wrote_is_never_retried() -> None:
    failed = (claim(), job(1, "Failed"), pod(TRAINER, **ended(1, message="error: no such data set")))
    plan = decide(running(), *failed)
    assert (plan.status.phase, condition(plan.status, "Succeeded").reason) == ("Failed", "InvalidConfiguration")


def test_without_recovery_checkpoints_a_failure_is_the_end_and_a_disruption_is_not() -> None:
    own = decide(running(config__recover__mode="disabled"), job(1, "Failed"), pod(TRAINER, **ended(1)))
    assert own.status.phase == "Failed"
    other = decide(running(config__recover__mode="disabled"), job(1, "Failed", reason="PodFailurePolicy"))
    assert other.status.attempt == 2


def test_the_next_job_waits_for_the_end_of_the_pods_before_it() -> None:
    second = continued(running(), decide(running(), job(1, "Failed", reason="PodFailurePolicy")))
    stuck = leaving(pod(TRAINER, attempt=1))
    plan = decide(second, server_set(), claim(), job(1, "Failed"), stuck)
    assert "Job case-trainer-2" not in named(plan)
    assert condition(plan.status, "TrainerRunning").reason == "WaitingForPods"
    assert "case-trainer-1-0-x" in plan.status.message
    assert "Job case-trainer-2" in named(decide(second, server_set(), claim(), job(1, "Failed")))


def test_a_deleted_job_comes_back_once_its_pods_have_ended() -> None:
    assert "Job case-trainer-1" not in named(decide(running(), server_set(), claim(), pod(SERVER), pod(TRAINER)))
    assert "Job case-trainer-1" in named(decide(running(), server_set(), claim(), pod(SERVER)))


def test_suspending_removes_everything_that_runs_and_then_says_suspended() -> None:
    flagged = state(running().status, runPolicy__suspend=True)
    plan = decide(flagged, *RUNNING)
    assert plan.status.phase == "Running"
    assert set(plan.prune) == {("StatefulSet", "case-server"), ("Job", "case-trainer-1")}
    assert condition(plan.status, "Suspended").reason == "Suspending"
    plan = decide(continued(flagged, plan), claim())
    assert (plan.status.phase, plan.status.active_since) == ("Suspended", None)


def test_a_suspension_is_finished_though_the_flag_is_taken_back() -> None:
    flagged = state(running().status, runPolicy__suspend=True)
    suspending = decide(flagged, *RUNNING)
    taken_back = state(suspending.status)
    plan = decide(taken_back, server_set(), claim(), pod(SERVER))
    assert "StatefulSet" not in {line.split()[0] for line in named(plan)}
    suspended = decide(taken_back, claim())
    assert (suspended.status.phase, suspended.requeue_after_s) == ("Suspended", 0.1)
    resumed = decide(continued(taken_back, suspended), claim(), now=later(60))
    assert (resumed.status.phase, resumed.status.attempt, resumed.status.restarts) == ("Starting", 2, 0)
    assert resumed.status.active_since == "2026-01-31T12:01:00Z"


def test_a_suspended_experiment_that_never_ran_owns_nothing() -> None:
    plan = decide(state(runPolicy__suspend=True))
    assert (plan.status.phase, plan.objects, plan.status.start_time) == ("Suspended", (), None)


def test_a_deadline_ends_the_run_and_is_not_retried() -> None:
    late = running(runPolicy__activeDeadlineSeconds=60)
    assert decide(late, *RUNNING, now=later(59)).requeue_after_s == 1.0
    plan = decide(late, *RUNNING, now=later(60))
    assert (plan.status.phase, condition(plan.status, "Succeeded").reason) == ("Failed", "DeadlineExceeded")
    assert ("Job", "case-trainer-1") in plan.prune


def test_what_cannot_start_gives_its_devices_back_and_says_why() -> None:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
    waiting = pod(TRAINER, phase="Pending", conditions=conditions)
    begun = started(runPolicy__preRunningDeadlineSeconds=300)
    assert decide(begun, server_set(), claim(), job(1), waiting, now=later(299)).requeue_after_s == 1.0
    plan = decide(begun, server_set(), claim(), job(1), waiting, now=later(300))
    assert plan.status.phase == "Failed"
    assert "preRunningDeadlineSeconds = 300" in plan.status.message
    assert "0/3 nodes" in plan.status.message
    assert set(plan.prune) == {("StatefulSet", "case-server"), ("Job", "case-trainer-1")}


def test_the_time_to_start_does_not_run_while_it_runs() -> None:
    plan = decide(running(runPolicy__preRunningDeadlineSeconds=300), *RUNNING, now=later(9999))
    assert plan.status.phase == "Running"


def test_a_finished_experiment_is_deleted_after_its_time() -> None:
    done = continued(running(), decide(running(), claim(), job(1, "Complete")))
    timed = state(done.status, runPolicy__ttlSecondsAfterFinished=60)
    plan = decide(timed, claim(), now=later(20))
    assert (plan.delete, plan.requeue_after_s) == (False, 40.0)
    assert decide(timed, claim(), now=later(60)).delete


def test_an_edit_of_the_trainer_waits_for_the_next_attempt() -> None:
    assert "Job case-trainer-1" not in named(decide(running(trainer__image="other"), *RUNNING))


def test_servers_beyond_the_known_addresses_are_said_to_be_useless() -> None:
    begun = running(servers__replicas=3)
    told = {**job(1), "metadata": {**job(1)["metadata"], "annotations": {"areal.dev/servers": "1"}}}
    plan = decide(begun, server_set(), claim(), told, pod(SERVER), pod(TRAINER))
    assert condition(plan.status, "ServersReady").reason == "BeyondMaxReplicas"


def test_a_refusal_of_the_api_server_is_said_and_asked_again() -> None:
    plan = decide(started(), claim(), refusal=Reason("Refused", "StatefulSet case-server: cpu is no quantity"))
    assert condition(plan.status, "Accepted").status == "False"
    assert plan.status.message == "StatefulSet case-server: cpu is no quantity"
    assert plan.requeue_after_s == 15.0


def test_a_spec_that_cannot_be_built_is_refused_and_leaves_alone_what_runs() -> None:
    edited = state(running().status, servers__volumes=[{"name": "areal-x"}])
    plan = decide(edited, *RUNNING)
    assert (plan.status.phase, plan.objects, plan.prune) == ("Running", (), ())
    assert condition(plan.status, "Accepted").reason == "Invalid"


def test_an_existing_volume_keeps_what_cannot_change_and_never_shrinks() -> None:
    plan = decide(started(storage__size="50Gi"), claim(size="100Gi"))
    spec = manifest(plan, "PersistentVolumeClaim")["spec"]
    assert (spec["storageClassName"], spec["resources"]["requests"]["storage"]) == ("fast", "100Gi")
    grown = manifest(decide(started(storage__size="1Ti"), claim()), "PersistentVolumeClaim")
    assert grown["spec"]["resources"]["requests"]["storage"] == "1Ti"


def test_old_jobs_go_and_the_last_failed_one_stays_for_its_logs() -> None:
    third = running().status.model_copy(update={"attempt": 3})
    plan = decide(state(third), server_set(), claim(), job(1, "Failed"), job(2, "Failed"), job(3))
    assert plan.prune == (("Job", "case-trainer-1"),)
