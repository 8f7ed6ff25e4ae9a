"""Why a pod, a claim or a controller does not make progress: one reason and one sentence from Kubernetes' own state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from areal_api import conditions
from areal_operator.observed import Object, Observed, condition_of, container_statuses, has_condition

PULL_REASONS = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
MOUNT_REASONS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
START_REASONS = ("CreateContainerError", "RunContainerError", "StartError")
DISK_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
OUT_OF_MEMORY = re.compile(r"out of memory|cannot allocate memory", re.IGNORECASE)
BACK_OFF_TIME = re.compile(r"\bback-off \S+ ")  # "back-off 5m0s restarting …": the time would change the status
UNBOUND = "unbound immediate PersistentVolumeClaims"
MAX_MESSAGE_LENGTH = 600


@dataclass(frozen=True)
class Reason:
    """The ``reason`` and ``message`` of a condition."""

    code: str
    message: str


def pod_problem(pod: Object, observed: Observed) -> Reason | None:
    """What keeps a pod from running; None while nothing is wrong as far as Kubernetes knows."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if (condition_of(pod, "PodScheduled") or {}).get("status") == "False":
        return _scheduling_problem(pod)
    if status.get("reason") == "Evicted":
        return Reason(conditions.EVICTED, truncated(f"pod {name}: {status.get('message') or 'was evicted'}"))
    for container in container_statuses(pod):
        problem = _waiting_problem(container) or _exit_problem(container)
        if problem is not None:
            return Reason(problem.code, truncated(f"pod {name}: {problem.message}"))
    # An event outlives its cause. Once the sandbox exists, all volumes have been mounted.
    if status.get("phase") == "Pending" and not has_condition(pod, "PodReadyToStartContainers"):
        mount = observed.warning_for(str(pod["metadata"].get("uid")), *MOUNT_REASONS)
        if mount is not None:
            return Reason(_mount_reason(mount.message), truncated(f"pod {name}: {mount.message}"))
    return None


def component_problem(
    observed: Observed, owner: Object | None, pods: Sequence[Object], *, missing: int
) -> Reason | None:
    """The first problem of a component's ``pods``, or of creating its ``missing`` pods."""
    for pod in pods:
        problem = pod_problem(pod, observed)
        if problem is not None:
            return problem
    return creation_problem(owner, observed) if owner is not None and missing > 0 else None


def creation_problem(owner: Object, observed: Observed) -> Reason | None:
    """Why a StatefulSet or Job cannot create a pod: quota, Pod Security or another admission check.

    Call it only while pods are missing: the event stays for an hour after its cause is gone.
    """
    warning = observed.warning_for(str(owner["metadata"].get("uid")), "FailedCreate")
    if warning is None:
        return None
    code = conditions.REFUSED
    if "exceeded quota" in warning.message:
        code = conditions.QUOTA_EXCEEDED
    elif "violates PodSecurity" in warning.message:
        code = conditions.POD_SECURITY
    return Reason(code, truncated(f"{owner['kind']} {owner['metadata']['name']}: {warning.message}"))


def claim_problem(claim: Object | None, observed: Observed) -> Reason | None:
    """Why the volume claim is not bound; None once it is."""
    if claim is None:
        return Reason(conditions.CREATING, "the volume claim is being created")
    name, phase = claim["metadata"]["name"], (claim.get("status") or {}).get("phase", "Pending")
    if phase == "Bound":
        return None
    if phase == "Lost":
        text = f"PersistentVolumeClaim {name} has lost its volume; restore it, or delete the claim"
        return Reason(conditions.VOLUME_LOST, text)
    warning = observed.warning_for(str(claim["metadata"].get("uid")), "ProvisioningFailed", "FailedBinding")
    if warning is not None:
        return Reason(conditions.PROVISIONING_FAILED, truncated(f"PersistentVolumeClaim {name}: {warning.message}"))
    text = f"PersistentVolumeClaim {name} is not bound yet; its class may wait for the first pod"
    return Reason(conditions.VOLUME_PENDING, text)


def exit_problem(container: str, ended: Object) -> Reason:
    """Why a container ended with an error."""
    line, message = last_line(ended), str(ended.get("message") or "")
    if ended.get("reason") == "OOMKilled":
        text = f"container {container} was killed: it used more memory than its limit; raise resources.limits"
        return Reason(conditions.OUT_OF_MEMORY, text)
    if DISK_FULL.search(message):
        text = f"container {container} found the volume full; raise storage.size or delete old runs: {line}"
        return Reason(conditions.VOLUME_FULL, text)
    if OUT_OF_MEMORY.search(message):
        return Reason(conditions.OUT_OF_MEMORY, f"container {container} ran out of memory: {line}")
    if ended.get("reason") == "StartError":
        return Reason(conditions.CONTAINER_START, f"container {container} could not be started: {line}")
    text = f"container {container} ended with exit status {ended.get('exitCode')}" + (f": {line}" if line else "")
    return Reason(conditions.CONTAINER_FAILED, text)


def last_line(ended: Object) -> str:
    """The last line of a container's termination message that names an error, else its last line."""
    lines = [line.strip() for line in str(ended.get("message") or "").splitlines() if line.strip(" =-^~")]
    errors = [line for line in lines if re.match(r"(error: |[\w.]*(Error|Exception)\b)", line)]
    return (errors or lines)[-1][:400] if lines else ""


def truncated(message: str) -> str:
    """A message in one line of bounded length."""
    text = " ".join(message.split())
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[: MAX_MESSAGE_LENGTH - 1]}…"


def _scheduling_problem(pod: Object) -> Reason | None:
    name, scheduled = pod["metadata"]["name"], condition_of(pod, "PodScheduled") or {}
    message = str(scheduled.get("message") or "is not scheduled")
    if UNBOUND in message:
        return Reason(conditions.VOLUME_PENDING, truncated(f"pod {name}: {message}"))
    if scheduled.get("reason") == "SchedulerError":  # an update conflict in the scheduler, which retries at once
        return None
    return Reason(scheduled.get("reason") or conditions.UNSCHEDULABLE, truncated(f"pod {name}: {message}"))


def _waiting_problem(container: Object) -> Reason | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message") or waiting.get("reason", "")
    if reason in PULL_REASONS:
        text = f"image {container.get('image')} cannot be pulled: {BACK_OFF_TIME.sub('back-off ', message)}"
        return Reason(conditions.IMAGE_PULL, text)
    if reason == "CrashLoopBackOff":
        return _crash_loop(container, message)
    if reason == "CreateContainerConfigError":
        missing_secret = "secret" in message.lower()
        return Reason(conditions.MISSING_SECRET if missing_secret else conditions.CONTAINER_CONFIG, message)
    return Reason(conditions.CONTAINER_START, message) if reason in START_REASONS else None


def _crash_loop(container: Object, message: str) -> Reason:
    ended = (container.get("lastState") or {}).get("terminated")
    problem = Reason(conditions.CRASH_LOOP, BACK_OFF_TIME.sub("back-off ", message))
    if ended:
        problem = exit_problem(container["name"], ended)
    code = conditions.CRASH_LOOP if problem.code == conditions.CONTAINER_FAILED else problem.code
    return Reason(code, f"{problem.message}; it keeps crashing ({container.get('restartCount', 0)} restarts)")


def _exit_problem(container: Object) -> Reason | None:
    ended = (container.get("state") or {}).get("terminated")
    return exit_problem(container["name"], ended) if ended and ended.get("exitCode") != 0 else None


def _mount_reason(message: str) -> str:
    if re.search(r'secret ".*" not found', message):
        return conditions.MISSING_SECRET
    missing_config_map = re.search(r'configmap ".*" not found', message)
    return conditions.MISSING_CONFIG_MAP if missing_config_map else conditions.VOLUME_MOUNT
