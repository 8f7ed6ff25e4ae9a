"""Reason a pod waits, a claim is pending, an attempt failed: one word and one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.names import EXIT_LOST_RANK, EXIT_STOPPED
from areal_api.resource_names import TRAINER
from areal_operator.diagnosis import Reason, claim_problem, creation_problem, job_failure, pod_problem
from areal_operator.observed import Observed, WarningEvent
from support.operator_objects import claim, ended, job, leaving, pod, server_set

TORCHRUN = """Root Cause (first observed failure):
[0]:
  time      : 2026-01-31_12:00:00
  exitcode  : 2 (pid: 7)
  error_file: <N/A>
"""


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    """The status of a pod whose container waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {
        "phase": "Pending",
        "conditions": [],
        "containerStatuses": [{"name": "trainer", "image": "img:1", "state": state, **more}],
    }


def last(**ended: Any) -> dict[str, Any]:
    return {"lastState": {"terminated": ended}, "restartCount": 4}


CASES = [
    (waiting("ImagePullBackOff", "Back-off pulling image"), "ImagePull", "image img:1 cannot be pulled"),
    (waiting("ErrImagePull", "not found"), "ImagePull", "not found"),
    (waiting("CreateContainerConfigError", 'secret "hf" not found'), "MissingSecret", 'secret "hf" not found'),
    (waiting("CreateContainerConfigError", 'configmap "x" not found'), "ContainerConfig", 'configmap "x"'),
    (waiting("CrashLoopBackOff", "", **last(exitCode=1, message="KeyError: 'x'")), "CrashLoop", "KeyError: 'x'"),
    (
        waiting("CrashLoopBackOff", "", **last(exitCode=137, reason="OOMKilled")),
        "OutOfMemory",
        "raise resources.limits",
    ),
    (waiting("RunContainerError", "exec: no such file"), "ContainerStart", "exec: no such file"),
    (ended(1, message="OSError: [Errno 28] No space left on device"), "VolumeFull", "raise storage.size"),
    (ended(1, message="torch.OutOfMemoryError: CUDA out of memory."), "OutOfMemory", "CUDA out of memory"),
    (ended(3, message="x\nRuntimeError: boom\n=====\n"), "ContainerFailed", "exit status 3: RuntimeError: boom"),
    ({"phase": "Failed", "reason": "Evicted", "message": "low on memory", "conditions": []}, "Evicted", "low on"),
]


@pytest.mark.parametrize(("status", "reason", "text"), CASES, ids=[f"{case[1]}: {case[2]}" for case in CASES])
def test_a_pod_says_why_it_does_not_run(status: dict[str, Any], reason: str, text: str) -> None:
    why = pod_problem(pod(TRAINER, **status), Observed())
    assert why is not None
    assert why.reason == reason
    assert text in why.message
    assert why.message.startswith("pod case-trainer-1-0-x: ")


def test_a_healthy_pod_has_no_problem() -> None:
    assert pod_problem(pod(TRAINER), Observed()) is None
    assert pod_problem(pod(TRAINER, **waiting("ContainerCreating")), Observed()) is None


def test_a_pod_that_has_no_place_says_what_the_scheduler_said() -> None:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes: gpu"}]
    why = pod_problem(pod(TRAINER, phase="Pending", conditions=conditions), Observed())
    assert why == Reason("Unschedulable", "pod case-trainer-1-0-x: 0/2 nodes: gpu")


def test_a_conflict_that_the_scheduler_resolves_by_itself_is_no_problem() -> None:
    said = "running PreBind plugin: the object has been modified"
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "SchedulerError", "message": said}]
    assert pod_problem(pod(TRAINER, phase="Pending", conditions=conditions), Observed()) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('MountVolume.SetUp failed for volume "v" : secret "hf" not found', "MissingSecret"),
        ('MountVolume.SetUp failed for volume "v" : configmap "c" not found', "MissingConfigMap"),
        ("Multi-Attach error for volume", "VolumeMount"),
    ],
)
def test_a_pod_whose_volume_cannot_be_mounted_says_so(message: str, reason: str) -> None:
    waits = pod(TRAINER, **waiting("ContainerCreating"))
    why = pod_problem(waits, Observed(warnings=[WarningEvent(waits["metadata"]["uid"], "FailedMount", message)]))
    assert why is not None
    assert why.reason == reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: q, requested: pods=1', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurity"),
        ("admission webhook denied the request", "Refused"),
    ],
)
def test_pods_that_could_not_be_made_are_explained(message: str, reason: str) -> None:
    why = creation_problem(server_set(), Observed(warnings=[WarningEvent("set", "FailedCreate", message)]))
    assert why is not None
    assert why.reason == reason
    assert why.message.startswith("StatefulSet case-server: ")


def test_a_claim_says_why_it_is_not_bound() -> None:
    assert claim_problem(claim("Bound"), Observed()) is None
    failed = Observed(warnings=[WarningEvent("claim", "ProvisioningFailed", 'storageclass "x" not found')])
    for found, reason in (
        (claim_problem(claim("Pending"), Observed()), "VolumePending"),
        (claim_problem(claim("Pending"), failed), "ProvisioningFailed"),
        (claim_problem(claim("Lost"), Observed()), "VolumeLost"),
        (claim_problem(None, Observed()), "Creating"),
    ):
        assert found is not None
        assert found.reason == reason


def test_a_job_that_runs_or_succeeded_has_not_failed() -> None:
    assert job_failure(job(1), [], nodes=2) is None
    assert job_failure(job(1, "Complete"), [], nodes=2) is None


def test_the_rank_that_failed_first_is_the_cause() -> None:
    first, second = pod(TRAINER, 0, **ended(1, message="RuntimeError: first")), pod(TRAINER, 1, **ended(1))
    second["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2026-01-31T12:00:09Z"
    failure = job_failure(job(1, "Failed"), [second, first], nodes=2)
    assert failure is not None
    assert "RuntimeError: first" in failure.why.message
    assert not failure.disruption


def test_one_preempted_pod_makes_the_failure_of_the_others_a_disruption() -> None:
    target = [{"type": "DisruptionTarget", "status": "True", "message": "preempted by pod y"}]
    pods = [pod(TRAINER, 0, **ended(1)), pod(TRAINER, 1, phase="Failed", conditions=target)]
    failure = job_failure(job(1, "Failed"), pods, nodes=2)
    assert failure is not None
    assert failure.disruption
    assert failure.why.message == "preempted by pod y"


def torchrun(exit_code: int) -> str:
    """What is left of the log of a pod whose first rank to fail ended with this status."""
    return f"torch.distributed.elastic…ChildFailedError:\n{TORCHRUN.replace(': 2 ', f': {exit_code} ')}"


@pytest.mark.parametrize("exit_code", [EXIT_LOST_RANK, EXIT_STOPPED])
@pytest.mark.parametrize("leaves", [True, False])
def test_a_pod_that_ended_because_another_was_deleted_has_not_failed(exit_code: int, leaves: bool) -> None:
    left = pod(TRAINER, 0, **ended(1, message=torchrun(exit_code)))
    deleted = [leaving(pod(TRAINER, 1))] if leaves else []
    failure = job_failure(job(1, "Failed"), [left, *deleted], nodes=2)
    assert failure is not None
    assert failure.disruption
    gone = "case-trainer-1-1-x" if leaves else "a pod of the trainer"
    assert failure.why == Reason("PodDeleted", f"{gone} was deleted; case-trainer-1-0-x ended after it")


def test_a_pod_that_failed_after_another_one_is_not_the_cause() -> None:
    lost = pod(TRAINER, 0, **ended(1, message=torchrun(EXIT_LOST_RANK)))
    killed = pod(TRAINER, 1, **ended(137))
    killed["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2026-01-31T12:00:01Z"
    failure = job_failure(job(1, "Failed"), [lost, killed], nodes=2)
    assert failure is not None
    assert not failure.disruption
    assert "case-trainer-1-1-x: container trainer ended with exit status 137" in failure.why.message


def test_ranks_that_all_lost_each_other_count_as_a_failure() -> None:
    """Or a network between pods that never works would be tried again for ever."""
    pods = [pod(TRAINER, index, **ended(1, message=torchrun(EXIT_LOST_RANK))) for index in range(2)]
    failure = job_failure(job(1, "Failed"), pods, nodes=2)
    assert failure is not None
    assert not failure.disruption


@pytest.mark.parametrize("message", ["error: actor.path: no such model", TORCHRUN])
def test_a_configuration_that_cannot_work_is_final(message: str) -> None:
    failure = job_failure(job(1, "Failed"), [pod(TRAINER, **ended(1, message=message))], nodes=2)
    assert failure is not None
    assert failure.final
