"""What a queue lets an experiment do, as the whole plan shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_api.resource_names import SERVER, TRAINER
from areal_operator.observed import KueueObjects, Object
from areal_operator.plan import Plan
from areal_operator.queueing import kueue
from areal_operator.queueing.gate import Gate
from areal_operator.queueing.report import Report
from support.operator_objects import (
    RUNNING,
    SETTINGS,
    claim,
    condition,
    continued,
    decide,
    exited,
    job,
    manifest,
    named,
    pod,
    server_set,
)
from support.queued_objects import (
    ADMITTED,
    KNOWN,
    PREEMPTED,
    RESERVED,
    admitted,
    decide_queued,
    queued_and_started,
    queued_state,
    said,
    stored_workload,
)

PENDING = "couldn't assign flavors to pod set servers: insufficient unused quota for nvidia.com/gpu, 4 more needed"
CONSUMERS = ("StatefulSet", "Job", "PersistentVolumeClaim")


def consumers(plan: Plan) -> list[str]:
    return [line for line in named(plan) if line.split()[0] in CONSUMERS]


def test_a_gate_without_a_queue_is_open() -> None:
    assert (Gate().open, Gate().reason, Gate().to_apply) == (True, None, ())


def test_a_new_experiment_in_a_queue_creates_its_workload_alone() -> None:
    plan = decide_queued(queued_state())
    assert named(plan) == ["Workload case-run"]
    assert (plan.status.phase, plan.status.attempt) == ("Queued", 0)
    assert condition(plan.status, "Admitted").status == "False"
    assert condition(plan.status, "Suspended").reason == "Queued"
    assert plan.status.message == "queue team-a: Kueue has not looked at the run yet"


def test_a_waiting_experiment_shows_kueues_reason_and_message() -> None:
    fresh = queued_state()
    waiting = stored_workload(fresh, said(kueue.QUOTA_RESERVED, "False", "Pending", PENDING))
    plan = decide_queued(fresh, waiting)
    assert (condition(plan.status, "Admitted").reason, plan.status.message) == ("Pending", f"queue team-a: {PENDING}")
    assert consumers(plan) == []


def test_a_waiting_experiment_shows_its_position_if_kueue_tells_it() -> None:
    fresh = queued_state()
    waiting = stored_workload(fresh, said(kueue.QUOTA_RESERVED, "False", "Pending", PENDING))
    plan = decide_queued(fresh, waiting, known=KueueObjects(position=3))
    assert plan.status.message == f"queue team-a, position 3: {PENDING}"


@pytest.mark.parametrize(
    "conditions",
    [
        (),
        (said(kueue.QUOTA_RESERVED, "False", "Inadmissible", "LocalQueue team-a doesn't exist"),),
        (RESERVED,),
        (RESERVED, said(kueue.ADMITTED, "False", "UnsatisfiedChecks")),
        (*ADMITTED, PREEMPTED),
        (said(kueue.ADMITTED),),
        (*ADMITTED, said(kueue.FINISHED)),
    ],
    ids=["unseen", "no queue", "reserved", "checks", "evicted", "admitted without quota", "finished"],
)
def test_nothing_starts_unless_the_workload_is_admitted_and_not_evicted(conditions: tuple[Object, ...]) -> None:
    fresh = queued_state()
    plan = decide_queued(fresh, stored_workload(fresh, *conditions, servers=1))
    assert (plan.status.phase, plan.status.attempt, consumers(plan)) == ("Queued", 0, [])


def test_an_admitted_experiment_starts_on_its_flavors() -> None:
    fresh = queued_state(trainer__nodeSelector={"zone": "b"})
    plan = decide_queued(fresh, admitted(fresh))
    assert (plan.status.phase, plan.status.attempt) == ("Starting", 1)
    assert condition(plan.status, "Admitted").status == "True"
    for kind in ("StatefulSet", "Job"):
        spec = manifest(plan, kind)["spec"]["template"]["spec"]
        assert spec["nodeSelector"]["gpu"] == "a100"
        assert {"key": "gpu", "operator": "Exists"} in spec["tolerations"]
    assert manifest(plan, "Job")["spec"]["template"]["spec"]["nodeSelector"]["zone"] == "b"
    assert "Workload case-run" not in named(plan)  # it holds quota


def test_no_child_names_the_queue() -> None:
    fresh = queued_state()
    for obj in decide_queued(fresh, admitted(fresh)).objects:
        assert kueue.QUEUE_LABEL not in str(obj)


def test_partial_admission_starts_fewer_servers_and_says_so() -> None:
    fresh = queued_state(servers__replicas=4, servers__minReplicas=1)
    assert manifest(decide_queued(fresh), "Workload")["spec"]["podSets"][0]["minCount"] == 1
    plan = decide_queued(fresh, admitted(fresh, servers=2))
    assert manifest(plan, "StatefulSet")["spec"]["replicas"] == 2
    assert "with 2 of 4 servers" in condition(plan.status, "Admitted").message


def test_a_preempted_run_stops_and_hands_its_quota_back_once_its_pods_have_ended() -> None:
    begun = queued_and_started()
    evicted = admitted(begun, PREEMPTED)
    running = continued(begun, decide_queued(begun, *RUNNING, admitted(begun)))
    plan = decide_queued(running, *RUNNING, evicted)
    assert {("StatefulSet", "case-server"), ("Job", "case-trainer-1")} <= set(plan.prune)
    assert (condition(plan.status, "Admitted").reason, plan.workload) == ("Preempted", None)
    assert "Preempted to accommodate a workload" in plan.status.message
    stopping = continued(running, plan)
    plan = decide_queued(stopping, claim(), pod(SERVER), evicted)
    assert plan.workload is None  # a pod runs
    plan = decide_queued(continued(stopping, plan), claim(), evicted)
    assert (plan.status.phase, plan.workload) == ("Queued", Report(hand_back=True))
    assert consumers(plan) == ["PersistentVolumeClaim case-run"]


def test_a_run_that_is_admitted_again_resumes_with_a_new_attempt_that_costs_no_restart() -> None:
    begun = queued_and_started()
    plan = decide_queued(begun, claim(), admitted(begun, PREEMPTED))
    waiting = continued(begun, plan)
    assert waiting.status.phase == "Queued"
    plan = decide_queued(waiting, claim(), admitted(begun))
    status = plan.status
    assert (status.phase, status.attempt, status.restarts, status.disruptions) == ("Starting", 2, 0, 0)


def test_an_experiment_that_is_evicted_before_it_starts_hands_its_quota_back() -> None:
    fresh = queued_state()
    plan = decide_queued(fresh, admitted(fresh, PREEMPTED))
    assert (plan.status.phase, plan.workload) == ("Queued", Report(hand_back=True))


def test_a_deactivated_workload_says_how_to_queue_it_again() -> None:
    fresh = queued_state()
    inactive = stored_workload(fresh, said(kueue.EVICTED, reason="Deactivated"))
    inactive["spec"]["active"] = False
    plan = decide_queued(fresh, inactive)
    assert condition(plan.status, "Admitted").reason == "Deactivated"
    assert "set its spec.active to true" in plan.status.message


def test_a_suspended_run_gives_its_workload_up_only_after_its_pods() -> None:
    begun = queued_and_started()
    running = continued(begun, decide_queued(begun, *RUNNING, admitted(begun)))
    suspended = replace(running, experiment=queued_state(runPolicy__suspend=True).experiment)
    plan = decide_queued(suspended, *RUNNING, admitted(begun))
    assert ("Workload", "case-run") not in plan.prune
    plan = decide_queued(continued(suspended, plan), claim(), admitted(begun))
    assert (plan.status.phase, ("Workload", "case-run") in plan.prune) == ("Suspended", True)


def test_an_experiment_created_suspended_has_no_workload() -> None:
    plan = decide_queued(queued_state(runPolicy__suspend=True))
    assert (plan.status.phase, plan.objects) == ("Suspended", ())


def test_a_deleted_workload_stops_the_run_which_queues_again() -> None:
    begun = queued_and_started()
    running = continued(begun, decide_queued(begun, *RUNNING, admitted(begun)))
    plan = decide_queued(running, *RUNNING)
    assert "Workload case-run" in named(plan)
    assert ("StatefulSet", "case-server") in plan.prune


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__nodes": 2},
        {"servers__resources": {"limits": {"nvidia.com/gpu": 4}}},
        {"labels": {kueue.QUEUE_LABEL: "b"}},
    ],
    ids=["nodes", "GPUs", "queue"],
)
def test_a_gang_that_differs_from_the_admitted_one_is_queued_again(changes: dict[str, Any]) -> None:
    begun = queued_and_started()
    running = continued(begun, decide_queued(begun, *RUNNING, admitted(begun)))
    edited = replace(running, experiment=queued_state(**changes).experiment)
    plan = decide_queued(edited, *RUNNING, admitted(begun))
    assert condition(plan.status, "Admitted").reason == "GangChanged"
    assert ("StatefulSet", "case-server") in plan.prune
    assert ("Workload", "case-run") not in plan.prune
    stopped = decide_queued(continued(edited, plan), claim(), admitted(begun))
    assert ("Workload", "case-run") in stopped.prune


def test_an_edit_that_requests_nothing_else_leaves_the_run_alone() -> None:
    begun = queued_and_started()
    running = continued(begun, decide_queued(begun, *RUNNING, admitted(begun)))
    edited = replace(running, experiment=queued_state(servers__env=[{"name": "A", "value": "1"}]).experiment)
    plan = decide_queued(edited, *RUNNING, admitted(begun))
    assert (plan.status.phase, plan.prune) == ("Running", ())


def test_servers_that_are_scaled_down_free_their_quota_once_they_have_ended() -> None:
    begun = queued_and_started(servers__replicas=3)
    fewer = replace(begun, experiment=queued_state(servers__replicas=1).experiment)
    before = admitted(begun, servers=3)
    pods = [pod(SERVER, index) for index in range(3)]
    plan = decide_queued(fewer, server_set(), claim(), job(1), *pods, pod(TRAINER), before)
    assert (plan.workload, manifest(plan, "StatefulSet")["spec"]["replicas"]) == (Report(True, 3), 1)
    plan = decide_queued(fewer, server_set(), claim(), job(1), pods[0], pod(TRAINER), before)
    assert plan.workload == Report(pods_ready=True, servers=1)


def test_a_finished_run_is_reported_once_its_pods_have_ended() -> None:
    begun = queued_and_started()
    ended = pod(TRAINER, **exited(0))
    running = continued(begun, decide_queued(begun, *RUNNING, admitted(begun)))
    plan = decide_queued(running, server_set(), claim(), job(1, "Complete"), pod(SERVER), ended, admitted(begun))
    assert (plan.status.phase, plan.workload) == ("Succeeded", None)
    plan = decide_queued(continued(running, plan), claim(), job(1, "Complete"), ended, admitted(begun))
    assert plan.workload is not None
    assert plan.workload.finished is not None
    assert plan.workload.finished.code == "Succeeded"


def test_without_kueue_nothing_starts_and_the_condition_says_so() -> None:
    for settings, known, reason in (
        (SETTINGS, KNOWN, "KueueDisabled"),
        (None, KueueObjects(refused="the server could not find the requested resource"), "KueueUnreadable"),
    ):
        more = {} if settings is None else {"settings": settings}
        plan = decide_queued(queued_state(), known=known, **more)
        assert (plan.status.phase, plan.objects) == ("Queued", ())
        found = condition(plan.status, "Admitted")
        assert (found.status, found.reason) == ("Unknown", reason)
        assert plan.requeue_after_s is not None


def test_a_run_is_left_alone_while_kueue_cannot_be_read() -> None:
    begun = queued_and_started()
    running = continued(begun, decide_queued(begun, *RUNNING, admitted(begun)))
    plan = decide_queued(running, *RUNNING, known=KueueObjects(refused="forbidden"))
    assert (plan.status.phase, plan.prune, plan.objects) == ("Running", (), ())
    assert condition(plan.status, "Admitted").status == "Unknown"
    done = (server_set(), claim(), job(1, "Complete"), pod(TRAINER, **exited(0)))
    assert decide_queued(running, *done, known=KueueObjects(refused="forbidden")).status.phase == "Succeeded"


def test_a_missing_flavor_starts_nothing() -> None:
    fresh = queued_state()
    plan = decide_queued(fresh, admitted(fresh), known=KueueObjects())
    assert (plan.status.phase, condition(plan.status, "Admitted").reason) == ("Queued", "NoFlavor")


def test_a_missing_priority_class_is_named_and_nothing_is_created() -> None:
    labels = {kueue.QUEUE_LABEL: "q", kueue.PRIORITY_LABEL: "urgent"}
    plan = decide_queued(queued_state(labels=labels))
    assert plan.objects == ()
    assert "WorkloadPriorityClass urgent does not exist" in plan.status.message
    plan = decide_queued(queued_state(labels=labels), known=KueueObjects(priority=7))
    spec = manifest(plan, "Workload")["spec"]
    assert (spec["priority"], spec["priorityClassRef"]["name"]) == (7, "urgent")


def test_labels_that_would_queue_single_pods_are_refused() -> None:
    plan = decide_queued(queued_state(servers__podLabels={kueue.QUEUE_LABEL: "q"}))
    assert condition(plan.status, "Accepted").reason == "Invalid"
    assert "servers.podLabels has kueue.x-k8s.io/queue-name" in plan.status.message


def test_an_experiment_that_leaves_its_queue_runs_on_without_a_workload() -> None:
    begun = queued_and_started()
    running = continued(begun, decide_queued(begun, *RUNNING, admitted(begun)))
    left = replace(running, experiment=queued_state(labels={}).experiment)
    plan = decide_queued(left, *RUNNING, admitted(begun))
    assert (plan.status.phase, plan.prune) == ("Running", (("Workload", "case-run"),))
    assert condition(plan.status, "Admitted").reason == "NotQueued"


def test_an_experiment_without_a_queue_has_no_condition_of_it() -> None:
    plan = decide(queued_state(labels={}))
    assert "Admitted" not in {one.type for one in plan.status.conditions}
    assert plan.status.attempt == 1


TRUTHS = st.sampled_from(["True", "False", None])


@given(
    truths=st.fixed_dictionaries(
        dict.fromkeys((kueue.QUOTA_RESERVED, kueue.ADMITTED, kueue.EVICTED, kueue.FINISHED, kueue.PODS_READY), TRUTHS)
    ),
    stopped=st.booleans(),
    present=st.sets(st.sampled_from(range(len(RUNNING)))),
    suspend=st.booleans(),
    exists=st.booleans(),
)
def test_pods_exist_only_while_admitted_and_quota_is_handed_back_only_without_pods(
    truths: dict[str, str | None], stopped: bool, present: set[int], suspend: bool, exists: bool
) -> None:
    begun = queued_and_started(runPolicy__suspend=False)
    if stopped:
        begun = continued(begun, decide_queued(begun, claim(), admitted(begun, PREEMPTED)))
    asked = replace(begun, experiment=queued_state(runPolicy__suspend=suspend).experiment)
    conditions = [said(kind, truth) for kind, truth in truths.items() if truth is not None]
    found = stored_workload(begun, *conditions, servers=1)
    objects = [RUNNING[index] for index in sorted(present)]
    plan = decide_queued(asked, *objects, *([found] if exists else []))
    may_run = exists and not suspend and truths[kueue.FINISHED] != "True" and truths[kueue.EVICTED] != "True"
    may_run = may_run and truths[kueue.QUOTA_RESERVED] == truths[kueue.ADMITTED] == "True"
    creates = {"StatefulSet", "Job"} & {line.split()[0] for line in named(plan)}
    assert may_run or not creates
    uses_quota = any(obj["kind"] in ("Pod", "StatefulSet", "Job") for obj in objects)
    gives_up = (plan.workload is not None and plan.workload.hand_back) or ("Workload", "case-run") in plan.prune
    assert not (gives_up and uses_quota)
