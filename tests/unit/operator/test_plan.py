"""The operator's policy: what runs, what is retried, what ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from areal_api.resource_names import SERVER, TRAINER
from areal_operator.diagnosis import Reason
from areal_operator.manifests import servers
from areal_operator.status import find
from support.operator_objects import (
    RUNNING,
    claim,
    condition,
    continued,
    decide,
    deleted,
    exited,
    job,
    later,
    manifest,
    named,
    pod,
    running,
    server_set,
    started,
    state,
    terminating,
)


def test_a_new_experiment_starts_its_first_attempt() -> None:
    plan = decide(state())
    assert (plan.status.phase, plan.status.attempt, plan.status.start_time) == ("Starting", 1, "2026-01-31T12:00:00Z")
    assert [line.split()[0] for line in named(plan)] == [
        "Secret",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "Service",
        "StatefulSet",
        "Job",
    ]
    assert named(plan)[-1] == "Job case-trainer-1"


def test_several_pods_need_a_budget_and_names_of_the_trainers_pods() -> None:
    budget, service = "PodDisruptionBudget case-server", "Service case-trainer"
    assert not {budget, service} & set(named(decide(state())))
    assert budget in named(decide(state(servers__replicas=2)))
    assert budget in named(decide(state(servers__nodesPerServer=2, servers__tensorParallel=2)))
    assert service in named(decide(state(trainer__nodes=2)))
    assert service in named(decide(state(storage__shared=False)))  # servers download weights from the trainer


def test_the_trainers_service_outlives_an_edit_after_which_the_next_attempt_needs_none() -> None:
    service = {"kind": "Service", "metadata": {"name": "case-trainer"}}
    assert decide(running(), *RUNNING, service).prune == ()


def test_the_phase_is_running_once_the_trainer_and_a_server_are_ready() -> None:
    begun = started()
    assert decide(begun, server_set(), claim(), job(1), pod(TRAINER)).status.phase == "Starting"
    plan = decide(begun, *RUNNING)
    assert (plan.status.phase, plan.status.message, plan.status.servers.summary) == ("Running", "", "1/1")


def test_a_running_experiment_needs_no_change_and_no_requeue() -> None:
    steady = running()
    plan = decide(steady, *RUNNING, now=later(3600))
    assert (plan.status, plan.prune, plan.requeue_after_s) == (steady.status, (), None)


def test_the_phase_stays_running_while_a_server_crashes_and_the_message_names_it() -> None:
    crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting"}}
    bad = pod(SERVER, conditions=[], containerStatuses=[{"name": "server", "state": crash, "restartCount": 3}])
    plan = decide(running(), server_set(), claim(), job(1), bad, pod(TRAINER))
    assert plan.status.phase == "Running"
    assert condition(plan.status, "ServersReady").reason == "CrashLoop"
    assert "back-off restarting" in plan.status.message


def test_a_finished_trainer_succeeds_and_frees_the_servers_but_keeps_its_pod() -> None:
    plan = decide(running(), server_set(), claim(), job(1, "Complete"), pod(SERVER), pod(TRAINER, **exited(0)))
    assert plan.status.phase == "Succeeded"
    assert plan.prune == (("StatefulSet", "case-server"),)
    assert plan.status.completion_time == "2026-01-31T12:00:00Z"
    assert plan.status.servers.summary == "0/0"


def test_a_draining_server_is_not_counted_as_ready() -> None:
    plan = decide(running(), server_set(), claim(), job(1), terminating(pod(SERVER)), pod(TRAINER))
    assert plan.status.servers.summary == "0/1"


def test_a_terminal_phase_is_kept_without_the_job() -> None:
    done = continued(running(), decide(running(), claim(), job(1, "Complete")))
    plan = decide(done, claim(), now=later(9999))
    assert (plan.status.phase, named(plan)) == ("Succeeded", ["PersistentVolumeClaim case-run"])


def test_a_failure_counts_and_is_retried_after_a_delay() -> None:
    failed = (server_set(), claim(), job(1, "Failed"), pod(SERVER), pod(TRAINER, **exited(1)))
    seen = decide(running(), *failed, now=later(1))
    assert (seen.status.phase, seen.status.attempt, seen.requeue_after_s) == ("Starting", 1, 10.0)
    assert condition(seen.status, "TrainerRunning").reason == "BackOff"
    assert seen.status.outcome is not None
    assert (seen.status.outcome.result, seen.status.outcome.time) == ("Failed", "2026-01-31T12:00:01Z")
    plan = decide(continued(running(), seen), *failed, now=later(11))
    assert (plan.status.attempt, plan.status.restarts, plan.status.disruptions) == (2, 1, 0)
    assert (plan.status.outcome, plan.status.job_uid) == (None, None)
    assert named(plan)[-1] == "Job case-trainer-2"


@pytest.mark.parametrize(
    ("failed", "pods"),
    [
        (job(1, "Failed", reason="PodFailurePolicy"), ()),
        (job(1, "Failed"), ()),
        (job(1, "Failed"), (terminating(pod(TRAINER, **exited(143))),)),
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


def test_the_run_fails_after_the_last_restart() -> None:
    failed = (claim(), job(1, "Failed"), pod(TRAINER, **exited(1, message="ValueError: x\n")))
    plan = decide(running(runPolicy__backoffLimit=0), *failed)
    assert plan.status.phase == "Failed"
    assert "ValueError: x; that was the last of 0 restarts" in plan.status.message


def test_a_users_mistake_is_never_retried() -> None:
    failed = (claim(), job(1, "Failed"), pod(TRAINER, **exited(1, message="error: no such data set")))
    plan = decide(running(), *failed)
    assert (plan.status.phase, condition(plan.status, "Succeeded").reason) == ("Failed", "InvalidConfiguration")


@pytest.mark.parametrize(
    ("reported", "status", "reason", "message"),
    [
        ({"health_warnings": [], "collapsed": False}, "True", "Healthy", "no warnings"),
        ({"health_warnings": [], "collapsed": False, "rollbacks": 1}, "True", "Healthy", "rolled back 1 times"),
        ({"health_warnings": ["drift"], "collapsed": False}, "False", "PolicyWarnings", "the KL from the policy"),
        ({"health_warnings": ["from_a_newer_version"]}, "False", "PolicyWarnings", "from_a_newer_version"),
        ({"health_warnings": ["declined"], "collapsed": True}, "False", "PolicyCollapsed", "the policy collapsed: the"),
    ],
)
def test_the_trainers_report_on_the_policy_is_a_condition(
    reported: dict[str, Any], status: str, reason: str, message: str
) -> None:
    begun = running()
    plan = decide(replace(begun, status=begun.status.model_copy(update=reported)), *RUNNING)
    found = condition(plan.status, "PolicyHealthy")
    assert (found.status, found.reason) == (status, reason)
    assert message in found.message
    assert plan.status.message == ("" if status == "True" else found.message)
    assert plan.requeue_after_s is None  # the next report causes a reconcile


def test_before_the_first_report_nothing_is_known_about_the_policy() -> None:
    assert find(decide(running(), *RUNNING).status.conditions, "PolicyHealthy") is None


def test_without_recovery_checkpoints_only_disruptions_are_retried() -> None:
    own = decide(running(config__recover__mode="disabled"), job(1, "Failed"), pod(TRAINER, **exited(1)))
    assert own.status.phase == "Failed"
    other = decide(running(config__recover__mode="disabled"), job(1, "Failed", reason="PodFailurePolicy"))
    assert other.status.attempt == 2


def test_the_next_job_waits_until_earlier_pods_have_ended() -> None:
    second = continued(running(), decide(running(), job(1, "Failed", reason="PodFailurePolicy")))
    stuck = terminating(pod(TRAINER, attempt=1))
    plan = decide(second, server_set(), claim(), job(1, "Failed"), stuck)
    assert "Job case-trainer-2" not in named(plan)
    assert condition(plan.status, "TrainerRunning").reason == "WaitingForPods"
    assert "case-trainer-1-0-x" in plan.status.message
    assert "Job case-trainer-2" in named(decide(second, server_set(), claim(), job(1, "Failed")))


def test_a_job_is_never_created_twice() -> None:
    """Also one that was deleted while it ran: the next attempt follows once its pods have ended."""
    gone = (deleted(job(1)),)
    waiting = decide(running(), server_set(), claim(), pod(SERVER), terminating(pod(TRAINER)), deleted=gone)
    assert (waiting.status.attempt, condition(waiting.status, "TrainerRunning").reason) == (1, "WaitingForPods")
    assert "Job" not in {line.split()[0] for line in named(waiting)}
    plan = decide(running(), server_set(), claim(), pod(SERVER), deleted=gone)
    assert (plan.status.attempt, plan.status.restarts, plan.status.disruptions) == (2, 0, 1)
    assert named(plan)[-1] == "Job case-trainer-2"


def test_a_job_that_was_not_created_yet_is_created() -> None:
    assert started().status.job_uid is None
    assert "Job case-trainer-1" in named(decide(started(), server_set(), claim(), pod(SERVER)))
    assert running().status.job_uid == "job-1"


@pytest.mark.parametrize(("exit_code", "phase"), [(0, "Succeeded"), (3, "Failed")])
def test_a_job_that_is_collected_at_once_ends_the_run_as_its_trainer_did(exit_code: int, phase: str) -> None:
    end = "Failed" if exit_code else "Complete"
    gone = (deleted(job(1, end)), deleted(pod(TRAINER, **exited(exit_code))))
    plan = decide(running(runPolicy__backoffLimit=0), server_set(), claim(), pod(SERVER), deleted=gone)
    assert plan.status.phase == phase
    assert plan.status.outcome is not None
    assert plan.status.outcome.result == phase


def test_an_end_that_nobody_saw_counts_against_the_backoff_limit() -> None:
    last = decide(running(runPolicy__backoffLimit=0), server_set(), claim(), pod(SERVER))
    assert (last.status.phase, condition(last.status, "Succeeded").reason) == ("Failed", "OutcomeUnknown")
    plan = decide(running(), server_set(), claim(), pod(SERVER))
    plan = decide(continued(running(), plan), server_set(), claim(), pod(SERVER), now=later(10))
    assert (plan.status.attempt, plan.status.restarts) == (2, 1)


def test_an_outcome_in_the_status_counts_although_job_and_pods_are_gone() -> None:
    failed = decide(
        running(), server_set(), claim(), job(1, "Failed"), pod(TRAINER, **exited(1, message="KeyError: 7"))
    )
    plan = decide(continued(running(), failed), server_set(), claim(), now=later(5))
    assert (plan.status.attempt, plan.requeue_after_s) == (1, 5.0)
    assert "KeyError: 7" in plan.status.message


def test_disruptions_of_short_attempts_are_delayed_more_and_more() -> None:
    status = running().status.model_copy(update={"disruptions": 5})
    gone = (deleted(job(1)),)
    plan = decide(state(status), claim(), now=later(30), deleted=gone)
    assert (plan.status.attempt, plan.requeue_after_s) == (1, 40.0)
    assert "the next one starts 40 s later, it does not count" in plan.status.message
    assert decide(state(status), claim(), now=later(61), deleted=gone).status.attempt == 2  # it ran for a minute


def test_a_clock_that_is_behind_delays_nothing() -> None:
    """The operator before this one had a faster clock: everything is measured from what this one sees."""
    failed = decide(running(), job(1, "Failed"), pod(TRAINER, **exited(1)), now=later(600))
    behind = decide(continued(running(), failed), claim(), now=later(0))
    assert behind.status.outcome is not None
    assert behind.status.outcome.time == "2026-01-31T12:00:00Z"
    assert decide(continued(running(), behind), claim(), now=later(10)).status.attempt == 2


def test_the_clock_of_the_controller_manager_does_not_matter() -> None:
    failed = job(1, "Failed")
    failed["status"]["conditions"][0]["lastTransitionTime"] = "2036-01-31T12:00:00Z"
    seen = decide(running(), failed, pod(TRAINER, **exited(1)))
    assert decide(continued(running(), seen), failed, now=later(10)).status.attempt == 2


def test_an_edit_of_the_nodes_does_not_fail_a_running_trainer() -> None:
    pods = (pod(TRAINER, 0), pod(TRAINER, 1))
    edited = state(running(trainer__nodes=2).status, trainer__nodes=1)
    plan = decide(edited, server_set(), claim(), job(1, nodes=2), pod(SERVER), *pods)
    assert (plan.status.phase, condition(plan.status, "TrainerRunning").status) == ("Running", "True")


def test_a_sidecar_does_not_keep_a_finished_run_running() -> None:
    lingering = pod(TRAINER, **exited(0, sidecar="proxy"))
    plan = decide(running(), server_set(), claim(), job(1), pod(SERVER), lingering)
    assert plan.status.phase == "Succeeded"
    assert "container proxy had not ended with it" in plan.status.message
    assert ("Job", "case-trainer-1") not in plan.prune
    later_plan = decide(continued(running(), plan), claim(), job(1), lingering, now=later(60))
    assert ("Job", "case-trainer-1") in later_plan.prune


def test_the_next_attempt_deletes_the_job_whose_sidecar_still_runs() -> None:
    lingering = pod(TRAINER, **exited(1, sidecar="proxy"))
    seen = decide(running(), server_set(), claim(), job(1), pod(SERVER), lingering)
    assert condition(seen.status, "TrainerRunning").reason == "BackOff"
    plan = decide(continued(running(), seen), server_set(), claim(), job(1), pod(SERVER), lingering, now=later(10))
    assert plan.status.attempt == 2
    assert ("Job", "case-trainer-1") in plan.prune
    assert condition(plan.status, "TrainerRunning").reason == "WaitingForPods"


def test_a_claim_of_somebody_else_is_used_and_never_changed() -> None:
    theirs = claim(created_for=None)
    plan = decide(
        running(storage__whenDeleted="Delete", storage__size="1Ti"), theirs, job(1), pod(TRAINER), pod(SERVER)
    )
    assert "PersistentVolumeClaim" not in {line.split()[0] for line in named(plan)}
    assert condition(plan.status, "StorageReady").reason == "NotOurs"


def test_a_claim_of_an_earlier_experiment_is_not_owned() -> None:
    earlier = claim(created_for="uid-0")
    plan = decide(running(storage__whenDeleted="Delete"), earlier, job(1), pod(TRAINER), pod(SERVER))
    assert "ownerReferences" not in manifest(plan, "PersistentVolumeClaim")["metadata"]
    assert "is kept" in condition(plan.status, "StorageReady").message
    own = decide(running(storage__whenDeleted="Delete"), claim(), job(1), pod(TRAINER), pod(SERVER))
    assert manifest(own, "PersistentVolumeClaim")["metadata"]["ownerReferences"][0]["uid"] == "uid-1"


@pytest.mark.parametrize("size", ["1395864371200m", "nonsense", "1e15"])
def test_a_size_stored_in_another_form_is_kept_or_compared(size: str) -> None:
    plan = decide(running(storage__size="1Gi"), claim(size=size), job(1), pod(TRAINER), pod(SERVER))
    assert condition(plan.status, "Accepted").status == "True"
    assert manifest(plan, "PersistentVolumeClaim")["spec"]["resources"]["requests"]["storage"] == size


def test_the_access_modes_of_an_existing_claim_decide_where_pods_go() -> None:
    plan = decide(running(), claim(accessModes=["ReadWriteOnce"]), job(1), pod(TRAINER), pod(SERVER))
    pod_spec = manifest(plan, "StatefulSet")["spec"]["template"]["spec"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" in pod_spec["affinity"]["podAffinity"]


def test_a_contested_object_is_named_until_it_is_settled() -> None:
    fight = Reason("ChangedByOthers", "field manager kueue keeps changing Job case-trainer-1")
    plan = decide(running(), *RUNNING, contested=fight)
    assert (condition(plan.status, "Contested").status, plan.status.message) == ("True", fight.message)
    settled = decide(continued(running(), plan), *RUNNING)
    assert (condition(settled.status, "Contested").status, settled.status.message) == ("False", "")
    assert find(running().status.conditions, "Contested") is None


def test_fields_of_a_newer_version_are_named_and_have_no_effect() -> None:
    newer = replace(running(), unknown_fields=("spec.servers.newKey",))
    plan = decide(newer, *RUNNING)
    accepted = condition(plan.status, "Accepted")
    assert (accepted.status, accepted.reason) == ("True", "UnknownFields")
    assert "spec.servers.newKey" in accepted.message


@pytest.mark.parametrize(
    "error", [TypeError("unhashable"), OverflowError("inf"), KeyError("x"), RecursionError("deep")]
)
def test_any_error_that_a_spec_causes_is_a_condition(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(servers, "server_set", fail)
    plan = decide(running(), *RUNNING)
    accepted = condition(plan.status, "Accepted")
    assert (accepted.status, accepted.reason, plan.requeue_after_s) == ("False", "Invalid", None)
    assert type(error).__name__ in accepted.message


def test_suspending_deletes_what_runs_before_the_phase_is_suspended() -> None:
    flagged = state(running().status, runPolicy__suspend=True)
    plan = decide(flagged, *RUNNING)
    assert plan.status.phase == "Running"
    assert set(plan.prune) == {("StatefulSet", "case-server"), ("Job", "case-trainer-1")}
    assert condition(plan.status, "Suspended").reason == "Suspending"
    plan = decide(continued(flagged, plan), claim())
    assert (plan.status.phase, plan.status.active_since) == ("Suspended", None)


def test_a_suspension_completes_even_if_the_flag_is_reset() -> None:
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


def test_an_experiment_created_suspended_owns_nothing() -> None:
    plan = decide(state(runPolicy__suspend=True))
    assert (plan.status.phase, plan.objects, plan.status.start_time) == ("Suspended", (), None)


def test_a_run_past_its_deadline_fails_and_is_not_retried() -> None:
    late = running(runPolicy__activeDeadlineSeconds=60)
    assert decide(late, *RUNNING, now=later(59)).requeue_after_s == 1.0
    plan = decide(late, *RUNNING, now=later(60))
    assert (plan.status.phase, condition(plan.status, "Succeeded").reason) == ("Failed", "DeadlineExceeded")
    assert ("Job", "case-trainer-1") in plan.prune


def test_a_run_that_cannot_start_releases_its_devices_and_names_the_reason() -> None:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
    waiting = pod(TRAINER, phase="Pending", conditions=conditions)
    begun = started(runPolicy__preRunningDeadlineSeconds=300)
    assert decide(begun, server_set(), claim(), job(1), waiting, now=later(299)).requeue_after_s == 1.0
    plan = decide(begun, server_set(), claim(), job(1), waiting, now=later(300))
    assert plan.status.phase == "Failed"
    assert "preRunningDeadlineSeconds = 300" in plan.status.message
    assert "0/3 nodes" in plan.status.message
    assert set(plan.prune) == {("StatefulSet", "case-server"), ("Job", "case-trainer-1")}


def test_the_start_deadline_does_not_apply_to_a_running_experiment() -> None:
    plan = decide(running(runPolicy__preRunningDeadlineSeconds=300), *RUNNING, now=later(9999))
    assert plan.status.phase == "Running"


def test_a_finished_experiment_is_deleted_after_its_ttl() -> None:
    done = continued(running(), decide(running(), claim(), job(1, "Complete")))
    timed = state(done.status, runPolicy__ttlSecondsAfterFinished=60)
    plan = decide(timed, claim(), now=later(20))
    assert (plan.delete, plan.requeue_after_s) == (False, 40.0)
    assert decide(timed, claim(), now=later(60)).delete


def test_an_edit_of_the_trainer_takes_effect_in_the_next_attempt() -> None:
    assert "Job case-trainer-1" not in named(decide(running(trainer__image="other"), *RUNNING))


def test_servers_without_a_known_address_are_reported() -> None:
    begun = running(servers__replicas=3)
    annotated = {**job(1), "metadata": {**job(1)["metadata"], "annotations": {"areal.dev/servers": "1"}}}
    plan = decide(begun, server_set(), claim(), annotated, pod(SERVER), pod(TRAINER))
    assert condition(plan.status, "ServersReady").reason == "BeyondMaxReplicas"


def test_a_rejection_by_the_api_server_is_reported_and_retried() -> None:
    plan = decide(started(), claim(), rejection=Reason("Refused", "StatefulSet case-server: cpu is no quantity"))
    assert condition(plan.status, "Accepted").status == "False"
    assert plan.status.message == "StatefulSet case-server: cpu is no quantity"
    assert plan.requeue_after_s == 15.0


def test_a_spec_that_cannot_be_built_is_rejected_and_running_objects_are_kept() -> None:
    edited = state(running().status, servers__volumes=[{"name": "areal-x"}])
    plan = decide(edited, *RUNNING)
    assert (plan.status.phase, plan.objects, plan.prune) == ("Running", (), ())
    assert condition(plan.status, "Accepted").reason == "Invalid"


def test_an_existing_claim_keeps_immutable_fields_and_never_shrinks() -> None:
    plan = decide(started(storage__size="50Gi"), claim(size="100Gi"))
    spec = manifest(plan, "PersistentVolumeClaim")["spec"]
    assert (spec["storageClassName"], spec["resources"]["requests"]["storage"]) == ("fast", "100Gi")
    grown = manifest(decide(started(storage__size="1Ti"), claim()), "PersistentVolumeClaim")
    assert grown["spec"]["resources"]["requests"]["storage"] == "1Ti"
    default = {"storage__size": None, "config__actor__path": "Qwen/Qwen2.5-7B"}
    kept = manifest(decide(started(**default), claim(size="100Gi")), "PersistentVolumeClaim")
    assert kept["spec"]["resources"]["requests"]["storage"] == "100Gi"


def test_old_jobs_are_deleted_and_the_last_failed_one_is_kept_for_its_logs() -> None:
    third = running().status.model_copy(update={"attempt": 3})
    plan = decide(state(third), server_set(), claim(), job(1, "Failed"), job(2, "Failed"), job(3))
    assert plan.prune == (("Job", "case-trainer-1"),)
