"""How an attempt of the trainer ended, from its Job and pods as far as they exist or were last seen.

The exit of the trainer's own container decides. Containers that others inject into the pod neither fail an attempt nor
keep it running. An attempt whose Job disappeared before anybody saw its end counts as failed: a new attempt continues
from the last checkpoint, or ends at once if the training is complete.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from areal_api import conditions, names
from areal_api.health import COLLAPSE_MESSAGE
from areal_api.status import AttemptOutcome
from areal_operator.diagnosis import exit_problem, last_line, truncated
from areal_operator.manifests.trainer import CONTAINER, DISRUPTED, OWN_CONTAINERS
from areal_operator.observed import (
    DELETION_WATCHED,
    LAST_SEEN,
    Object,
    Observed,
    annotation,
    condition_of,
    container_statuses,
    has_condition,
    is_active,
    is_terminating,
    termination_of,
)

COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
# What the trainer prints about a user's mistake, or torchrun about a rank that ended because of one.
USER_ERROR = re.compile(r"^error: |exitcode\s*: 2 ")
COLLAPSE = re.compile(rf"^error: {COLLAPSE_MESSAGE}")
ROOT_CAUSE = re.compile(r"Root Cause .*?exitcode\s*: (-?\d+) ", re.DOTALL)  # by torchrun: the first rank that failed
SECONDARY_EXITS = (names.EXIT_LOST_RANK, names.EXIT_STOPPED)


def attempt_outcome(
    observed: Observed, *, job_name: str, attempt: int, created: bool, nodes: int
) -> AttemptOutcome | None:
    """How an attempt ended; None while it runs or before it has started.

    ``created``: the status says that the Job was created. ``nodes``: number of its pods, if the Job does not tell.
    """
    existing, deleted = observed.get("Job", job_name), observed.get_deleted("Job", job_name)
    job = existing or deleted
    if job is None and not created:
        return None
    nodes = job_nodes(job, nodes)
    pods = _latest([*observed.trainer_pods(attempt), *observed.deleted_trainer_pods(attempt)])
    if job is not None and has_condition(job, "Complete"):
        return AttemptOutcome(result="Succeeded", reason=conditions.SUCCEEDED, message=_finished(attempt))
    succeeded = {_index(pod) for pod in pods if _exit_code(pod) == 0}
    if len(succeeded) >= nodes:
        lingering = _lingering_containers(pods)
        text = _finished(attempt) + (f"; {lingering} had not ended with it" if lingering else "")
        return AttemptOutcome(result="Succeeded", reason=conditions.SUCCEEDED, message=text)
    if job is not None and has_condition(job, "Failed"):
        return _failed_job(condition_of(job, "Failed") or {}, pods, nodes=nodes)
    if existing is None:
        return _without_job(deleted, pods)
    return _failed_beside_sidecars(pods, nodes=nodes)


def job_nodes(job: Object | None, default: int) -> int:
    """Number of pods of a Job: its own, because the spec may have been edited since it was created."""
    completions = ((job or {}).get("spec") or {}).get("completions")
    return completions if isinstance(completions, int) and completions > 0 else default


def trainer_ended(pod: Object) -> bool:
    """Whether the trainer's container has ended, although the pod may still run other containers."""
    return _exit_code(pod) is not None


def _finished(attempt: int) -> str:
    return f"the trainer finished in attempt {attempt}"


def _failed_job(failed: Object, pods: Sequence[Object], *, nodes: int) -> AttemptOutcome:
    """The outcome of a Job with the condition ``failed``."""
    disrupted = [pod for pod in pods if has_condition(pod, DISRUPTED)]
    if disrupted or failed.get("reason") == "PodFailurePolicy":
        condition = (condition_of(disrupted[0], DISRUPTED) if disrupted else failed) or {}
        return _disrupted(conditions.DISRUPTED, str(condition.get("message") or "the pod was disrupted"))
    failures = sorted((pod for pod in pods if _has_failed(pod) and not is_terminating(pod)), key=_ended_at)
    causes = [pod for pod in failures if not _ended_after_another(pod)]
    if not causes and len(failures) < nodes:
        gone = _pod_names([pod for pod in pods if pod not in failures]) or "a pod of the trainer"
        text = f"{gone} was deleted" + (f"; {_pod_names(failures)} ended after it" if failures else "")
        return _disrupted(conditions.POD_DELETED, text)
    return _pod_failure((causes or failures)[0])


def _without_job(deleted: Object | None, pods: Sequence[Object]) -> AttemptOutcome | None:
    """The outcome of an attempt whose Job is gone; None while pods of it may still run."""
    if any(is_active(pod) and LAST_SEEN not in pod for pod in pods):
        return None
    failures = sorted((pod for pod in pods if _has_failed(pod) and not is_terminating(pod)), key=_ended_at)
    causes = [pod for pod in failures if not _ended_after_another(pod)]
    if causes:
        return _pod_failure(causes[0])
    if deleted is not None and deleted.get(LAST_SEEN) == DELETION_WATCHED:
        text = f"Job {deleted['metadata']['name']} was deleted while it ran"
        return _disrupted(conditions.JOB_DELETED, text)
    text = "its Job was deleted before the operator saw how it ended"
    return AttemptOutcome(result="Failed", reason=conditions.OUTCOME_UNKNOWN, message=text)


def _failed_beside_sidecars(pods: Sequence[Object], *, nodes: int) -> AttemptOutcome | None:
    """A failure that the Job does not show because other containers keep the pods running."""
    pods = [pod for pod in pods if LAST_SEEN not in pod]
    if len(pods) < nodes or any(is_active(pod) and not trainer_ended(pod) for pod in pods):
        return None
    failures = sorted((pod for pod in pods if is_active(pod) and _exit_code(pod)), key=_ended_at)
    if not failures:
        return None
    causes = [pod for pod in failures if not _ended_after_another(pod)]
    outcome = _pod_failure((causes or failures)[0])
    text = f"{outcome.message}; {_lingering_containers(pods)} had not ended with it"
    return outcome.model_copy(update={"message": truncated(text)})


def _pod_failure(pod: Object) -> AttemptOutcome:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for container in sorted(container_statuses(pod), key=lambda one: one.get("name") not in OWN_CONTAINERS):
        ended = (container.get("state") or {}).get("terminated")
        if ended is None or ended.get("exitCode") == 0:
            continue
        message = str(ended.get("message") or "")
        if COLLAPSE.search(message):
            return _failed(conditions.POLICY_COLLAPSED, f"pod {name}: {last_line(ended)}", final=True)
        if USER_ERROR.search(message):
            return _failed(conditions.INVALID_CONFIGURATION, f"pod {name}: {last_line(ended)}", final=True)
        problem = exit_problem(container["name"], ended)
        return _failed(problem.code, f"pod {name}: {problem.message}")
    message = status.get("message") or f"ended as {status.get('phase')}"
    return _failed(status.get("reason") or conditions.TRAINER_FAILED, f"pod {name}: {message}")


def _failed(reason: str, message: str, *, final: bool = False) -> AttemptOutcome:
    return AttemptOutcome(result="Failed", reason=reason, message=truncated(message), final=final)


def _disrupted(reason: str, message: str) -> AttemptOutcome:
    return AttemptOutcome(result="Disrupted", reason=reason, message=truncated(message))


def _latest(pods: Sequence[Object]) -> list[Object]:
    """Each pod once; an existing one counts before its last known state."""
    return list({str(pod["metadata"].get("uid")): pod for pod in reversed(pods)}.values())[::-1]


def _pod_names(pods: Sequence[Object]) -> str:
    return ", ".join(str(pod["metadata"]["name"]) for pod in pods)


def _index(pod: Object) -> str:
    return annotation(pod, COMPLETION_INDEX) or str(pod["metadata"]["name"])


def _exit_code(pod: Object) -> int | None:
    """Exit status of the trainer's container; None while it runs or waits."""
    ended = termination_of(pod, CONTAINER)
    code = None if ended is None else ended.get("exitCode")
    return code if isinstance(code, int) else None


def _lingering_containers(pods: Sequence[Object]) -> str:
    """Containers that keep a pod running although its trainer has ended."""
    found = sorted(
        {
            str(container["name"])
            for pod in pods
            if is_active(pod) and trainer_ended(pod)
            for container in (pod.get("status") or {}).get("containerStatuses") or ()
            if container.get("name") != CONTAINER and "running" in (container.get("state") or {})
        }
    )
    return f"container {', '.join(found)}" if found else ""


def _ended_after_another(pod: Object) -> bool:
    """Whether a failed pod ended only because another one did: its rank lost that one, or was stopped by it."""
    ends = [(container.get("state") or {}).get("terminated") or {} for container in container_statuses(pod)]
    matches = [ROOT_CAUSE.search(str(end.get("message") or "")) for end in ends]
    return any(match is not None and int(match[1]) in SECONDARY_EXITS for match in matches)


def _has_failed(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") == "Failed" and _exit_code(pod) != 0


def _ended_at(pod: Object) -> str:
    ends = [(container.get("state") or {}).get("terminated") or {} for container in container_statuses(pod)]
    return min((str(end["finishedAt"]) for end in ends if end.get("finishedAt") and end.get("exitCode")), default="~")
