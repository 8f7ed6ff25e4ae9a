"""How an attempt ended, from its Job and pods, existing or deleted."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.names import EXIT_LOST_RANK, EXIT_STOPPED
from areal_api.resource_names import TRAINER
from areal_api.status import AttemptOutcome
from areal_operator.observed import DELETION_MISSED, Object, Observed
from areal_operator.outcome import attempt_outcome
from support.operator_objects import deleted, exited, job, pod, terminating

PREEMPTED = [{"type": "DisruptionTarget", "status": "True", "message": "preempted by pod y"}]
TORCHRUN = """Root Cause (first observed failure):
[0]:
  time      : 2026-01-31_12:00:00
  exitcode  : 2 (pid: 7)
  error_file: <N/A>
"""


def outcome(*objects: Object, gone: tuple[Object, ...] = (), created: bool = True) -> AttemptOutcome | None:
    """The outcome of attempt 1 with these existing and deleted objects."""
    by_kind: dict[str, list[Object]] = {}
    for obj in objects:
        by_kind.setdefault(obj["kind"], []).append(obj)
    observed = Observed(by_kind, deleted=gone)
    return attempt_outcome(observed, job_name="case-trainer-1", attempt=1, created=created, nodes=1)


def result(*objects: Object, **more: Any) -> str | None:
    ended = outcome(*objects, **more)
    return None if ended is None else ended.result


def torchrun(exit_code: int) -> str:
    """The end of the log of a pod whose first failing rank had this exit status."""
    return f"torch.distributed.elastic…ChildFailedError:\n{TORCHRUN.replace(': 2 ', f': {exit_code} ')}"


def test_an_attempt_that_runs_or_has_not_started_has_no_outcome() -> None:
    assert result(created=False) is None
    assert result(job(1)) is None
    assert result(job(1), pod(TRAINER)) is None


def test_a_complete_job_has_succeeded() -> None:
    assert result(job(1, "Complete")) == "Succeeded"


def test_the_rank_that_failed_first_is_the_cause() -> None:
    first, second = pod(TRAINER, 0, **exited(1, message="RuntimeError: first")), pod(TRAINER, 1, **exited(1))
    second["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2026-01-31T12:00:09Z"
    ended = outcome(job(1, "Failed", nodes=2), second, first)
    assert ended is not None
    assert (ended.result, ended.reason) == ("Failed", "ContainerFailed")
    assert "RuntimeError: first" in ended.message


def test_one_preempted_pod_makes_the_failure_of_the_others_a_disruption() -> None:
    pods = [pod(TRAINER, 0, **exited(1)), pod(TRAINER, 1, phase="Failed", conditions=PREEMPTED)]
    ended = outcome(job(1, "Failed", nodes=2), *pods)
    assert ended is not None
    assert (ended.result, ended.message) == ("Disrupted", "preempted by pod y")


@pytest.mark.parametrize("exit_code", [EXIT_LOST_RANK, EXIT_STOPPED])
@pytest.mark.parametrize("exists", [True, False])
def test_a_pod_that_ended_because_another_was_deleted_has_not_failed(exit_code: int, exists: bool) -> None:
    left = pod(TRAINER, 0, **exited(1, message=torchrun(exit_code)))
    others = [terminating(pod(TRAINER, 1))] if exists else []
    ended = outcome(job(1, "Failed", nodes=2), left, *others)
    assert ended is not None
    gone = "case-trainer-1-1-x" if exists else "a pod of the trainer"
    assert (ended.result, ended.reason) == ("Disrupted", "PodDeleted")
    assert ended.message == f"{gone} was deleted; case-trainer-1-0-x ended after it"


def test_a_pod_that_failed_after_another_one_is_not_the_cause() -> None:
    lost = pod(TRAINER, 0, **exited(1, message=torchrun(EXIT_LOST_RANK)))
    killed = pod(TRAINER, 1, **exited(137))
    killed["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2026-01-31T12:00:01Z"
    ended = outcome(job(1, "Failed", nodes=2), lost, killed)
    assert ended is not None
    assert ended.result == "Failed"
    assert "case-trainer-1-1-x: container trainer ended with exit status 137" in ended.message


def test_ranks_that_all_lost_each_other_count_as_a_failure() -> None:
    """Otherwise a network that never works between pods would be retried for ever."""
    pods = [pod(TRAINER, index, **exited(1, message=torchrun(EXIT_LOST_RANK))) for index in range(2)]
    assert result(job(1, "Failed", nodes=2), *pods) == "Failed"


@pytest.mark.parametrize("message", ["error: actor.path: no such model", TORCHRUN])
def test_a_configuration_that_cannot_work_is_final(message: str) -> None:
    ended = outcome(job(1, "Failed"), pod(TRAINER, **exited(1, message=message)))
    assert ended is not None
    assert (ended.final, ended.reason) == (True, "InvalidConfiguration")


@pytest.mark.parametrize(
    ("container", "exit_code", "line", "final"),
    [
        ("code", 2, "error: code.git.commit: https://a/b does not send commit 00", True),
        ("code", 1, "OSError: code.git.url: https://a/b cannot be reached", False),
        ("bucket", 2, "error: storage.bucket: there is no bucket s3://a at AWS; create it", True),
        ("bucket", 1, "OSError: storage.bucket: cannot write in s3://a at http://b", False),
    ],
)
def test_code_or_a_bucket_that_cannot_be_used_ends_the_run_with_its_sentence(
    container: str, exit_code: int, line: str, final: bool
) -> None:
    ended = {"exitCode": exit_code, "reason": "Error", "message": line}
    status = {"name": container, "image": "i", "state": {"terminated": ended}}
    waiting = {"name": "trainer", "image": "i", "state": {"waiting": {"reason": "PodInitializing"}}}
    failed = pod(TRAINER, phase="Failed", conditions=[], initContainerStatuses=[status], containerStatuses=[waiting])
    found = outcome(job(1, "Failed"), failed)
    assert found is not None
    assert (found.result, found.final) == ("Failed", final)
    assert line.partition(": ")[2] in found.message


def test_a_collapsed_policy_is_final_and_no_configuration_error() -> None:
    ended = outcome(job(1, "Failed"), pod(TRAINER, **exited(2, message="error: the policy collapsed: after step 9 …")))
    assert ended is not None
    assert (ended.result, ended.final, ended.reason) == ("Failed", True, "PolicyCollapsed")


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_the_outcome_of_a_job_that_was_collected_is_its_last_state(end: str) -> None:
    gone = (deleted(job(1, end)), deleted(pod(TRAINER, **exited(0 if end == "Complete" else 3))))
    assert result(gone=gone) == {"Complete": "Succeeded", "Failed": "Failed"}[end]


def test_a_job_deleted_while_it_ran_is_a_disruption_once_its_pods_have_ended() -> None:
    gone = (deleted(job(1)),)
    assert result(terminating(pod(TRAINER)), gone=gone) is None
    ended = outcome(terminating(pod(TRAINER, **exited(143))), gone=gone)
    assert ended is not None
    assert (ended.result, ended.reason) == ("Disrupted", "JobDeleted")


def test_a_job_deleted_after_its_trainer_exited_has_the_trainers_outcome() -> None:
    assert result(gone=(deleted(job(1)), deleted(pod(TRAINER, **exited(0))))) == "Succeeded"
    assert result(gone=(deleted(job(1)), deleted(pod(TRAINER, **exited(1))))) == "Failed"


def test_an_end_that_nobody_saw_counts_as_a_failure() -> None:
    for gone in ((), (deleted(job(1), DELETION_MISSED),)):
        ended = outcome(gone=gone)
        assert ended is not None
        assert (ended.result, ended.reason, ended.final) == ("Failed", "OutcomeUnknown", False)


def test_pods_without_their_job_are_awaited_and_then_decide() -> None:
    assert result(pod(TRAINER)) is None
    assert result(pod(TRAINER, **exited(0))) == "Succeeded"
    assert result(pod(TRAINER, **exited(1))) == "Failed"


def test_the_exit_of_the_trainer_decides_although_a_sidecar_runs() -> None:
    ended = outcome(job(1), pod(TRAINER, **exited(0, sidecar="proxy")))
    assert ended is not None
    assert ended.result == "Succeeded"
    assert "container proxy had not ended with it" in ended.message
    ended = outcome(job(1), pod(TRAINER, **exited(1, message="RuntimeError: boom", sidecar="proxy")))
    assert ended is not None
    assert ended.result == "Failed"
    assert "RuntimeError: boom" in ended.message
    assert "container proxy" in ended.message


def test_all_trainers_must_have_exited_before_sidecars_are_ignored() -> None:
    one, running = pod(TRAINER, 0, **exited(1, sidecar="proxy")), pod(TRAINER, 1)
    assert result(job(1, nodes=2), one, running) is None
    assert result(job(1, nodes=2), pod(TRAINER, 0, **exited(0, sidecar="proxy"))) is None


def test_a_sidecar_that_fails_does_not_fail_the_attempt() -> None:
    status = exited(0)
    status["phase"] = "Failed"
    status["containerStatuses"].append({"name": "proxy", "state": {"terminated": {"exitCode": 1}}})
    assert result(job(1, "Failed"), pod(TRAINER, **status)) == "Succeeded"


def test_the_number_of_pods_is_the_jobs_own() -> None:
    """The spec may have been edited since; here it says 1, the Job 2."""
    assert result(job(1, nodes=2), pod(TRAINER, 0, **exited(0))) is None
    assert result(job(1, nodes=2), pod(TRAINER, 0, **exited(0)), pod(TRAINER, 1, **exited(0))) == "Succeeded"
