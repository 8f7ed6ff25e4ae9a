"""Why a pod, a claim or a controller does not make progress."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.resource_names import TRAINER
from areal_operator.diagnosis import (
    MAX_MESSAGE_LENGTH,
    Reason,
    claim_problem,
    component_problem,
    creation_problem,
    pod_problem,
    truncated,
)
from areal_operator.observed import Observed, WarningEvent
from support.operator_objects import claim, exited, pod, server_set


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    """The status of a pod whose container is waiting."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {
        "phase": "Pending",
        "conditions": [],
        "containerStatuses": [{"name": "trainer", "image": "img:1", "state": state, **more}],
    }


def last(**terminated: Any) -> dict[str, Any]:
    return {"lastState": {"terminated": terminated}, "restartCount": 4}


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
    (exited(1, message="OSError: [Errno 28] No space left on device"), "VolumeFull", "raise storage.size"),
    (exited(1, message="torch.OutOfMemoryError: CUDA out of memory."), "OutOfMemory", "CUDA out of memory"),
    (exited(3, message="x\nRuntimeError: boom\n=====\n"), "ContainerFailed", "exit status 3: RuntimeError: boom"),
    ({"phase": "Failed", "reason": "Evicted", "message": "low on memory", "conditions": []}, "Evicted", "low on"),
]


@pytest.mark.parametrize(("status", "reason", "text"), CASES, ids=[f"{case[1]}: {case[2]}" for case in CASES])
def test_the_problem_of_a_pod_is_named(status: dict[str, Any], reason: str, text: str) -> None:
    problem = pod_problem(pod(TRAINER, **status), Observed())
    assert problem is not None
    assert problem.code == reason
    assert text in problem.message
    assert problem.message.startswith("pod case-trainer-1-0-x: ")


def test_a_healthy_pod_has_no_problem() -> None:
    assert pod_problem(pod(TRAINER), Observed()) is None
    assert pod_problem(pod(TRAINER, **waiting("ContainerCreating")), Observed()) is None


def test_an_unschedulable_pod_has_the_schedulers_message() -> None:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes: gpu"}]
    problem = pod_problem(pod(TRAINER, phase="Pending", conditions=conditions), Observed())
    assert problem == Reason("Unschedulable", "pod case-trainer-1-0-x: 0/2 nodes: gpu")


def test_a_conflict_that_the_scheduler_retries_is_no_problem() -> None:
    message = "running PreBind plugin: the object has been modified"
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "SchedulerError", "message": message}]
    assert pod_problem(pod(TRAINER, phase="Pending", conditions=conditions), Observed()) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('MountVolume.SetUp failed for volume "v" : secret "hf" not found', "MissingSecret"),
        ('MountVolume.SetUp failed for volume "v" : configmap "c" not found', "MissingConfigMap"),
        ("Multi-Attach error for volume", "VolumeMount"),
    ],
)
def test_a_failed_mount_is_the_problem_of_a_pending_pod(message: str, reason: str) -> None:
    pending = pod(TRAINER, **waiting("ContainerCreating"))
    problem = pod_problem(
        pending, Observed(warnings=[WarningEvent(pending["metadata"]["uid"], "FailedMount", message)])
    )
    assert problem is not None
    assert problem.code == reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: q, requested: pods=1', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurity"),
        ("admission webhook denied the request", "Refused"),
    ],
)
def test_a_refused_pod_creation_is_named(message: str, reason: str) -> None:
    problem = creation_problem(server_set(), Observed(warnings=[WarningEvent("set", "FailedCreate", message)]))
    assert problem is not None
    assert problem.code == reason
    assert problem.message.startswith("StatefulSet case-server: ")


def test_the_problem_of_an_unbound_claim_is_named() -> None:
    assert claim_problem(claim("Bound"), Observed()) is None
    failed = Observed(warnings=[WarningEvent("claim", "ProvisioningFailed", 'storageclass "x" not found')])
    for problem, reason in (
        (claim_problem(claim("Pending"), Observed()), "VolumePending"),
        (claim_problem(claim("Pending"), failed), "ProvisioningFailed"),
        (claim_problem(claim("Lost"), Observed()), "VolumeLost"),
        (claim_problem(None, Observed()), "Creating"),
    ):
        assert problem is not None
        assert problem.code == reason


def test_a_mount_event_is_outdated_once_the_sandbox_is_ready() -> None:
    status = waiting("ContainerCreating")
    pending = pod(TRAINER, **status)
    observed = Observed(warnings=[WarningEvent(pending["metadata"]["uid"], "FailedMount", 'secret "hf" not found')])
    assert pod_problem(pending, observed) is not None
    status["conditions"] = [{"type": "PodReadyToStartContainers", "status": "True"}]
    assert pod_problem(pod(TRAINER, **status), observed) is None


def test_a_creation_event_is_outdated_once_all_pods_exist() -> None:
    observed = Observed(warnings=[WarningEvent("set", "FailedCreate", "exceeded quota: none")])
    starting = [pod(TRAINER, **waiting("ContainerCreating"))]
    problem = component_problem(observed, server_set(), starting, missing=1)
    assert problem is not None
    assert problem.code == "QuotaExceeded"
    assert component_problem(observed, server_set(), starting, missing=0) is None


def test_messages_have_one_line_of_bounded_length() -> None:
    assert truncated("a\n  b") == "a b"
    assert len(truncated("x" * 10_000)) == MAX_MESSAGE_LENGTH
