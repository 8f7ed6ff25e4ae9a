"""Reason a pod waits, and why an attempt failed: from what Kubernetes says to one word and one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from areal_api import names
from areal_operator.clock import parse
from areal_operator.manifests.trainer import DISRUPTED
from areal_operator.observed import Object, Observed, condition_of, is_active, is_terminating

PULL_REASONS = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
MOUNT_REASONS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
MEMORY = re.compile(r"out of memory|cannot allocate memory", re.IGNORECASE)
# What the trainer says of something that a user wrote, or torchrun of a rank that ended because of it.
INVALID = re.compile(r"^error: |exitcode\s*: 2 ")
ROOT_CAUSE = re.compile(r"Root Cause .*?exitcode\s*: (-?\d+) ", re.DOTALL)  # torchrun, of the rank that ended first
FOLLOWED = (names.EXIT_LOST_RANK, names.EXIT_STOPPED)
BACK_OFF = re.compile(r"\bback-off \S+ ")  # "back-off 5m0s restarting …": the time would change the status every time
UNBOUND = "unbound immediate PersistentVolumeClaims"
LONGEST = 600


@dataclass(frozen=True)
class Reason:
    """A reason, as conditions have it, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Failure:
    """How an attempt of the trainer ended."""

    why: Reason
    at: datetime
    disruption: bool = False  # nothing of ours failed: it does not count against backoffLimit
    final: bool = False  # the next attempt would end the same way


def pod_problem(pod: Object, observed: Observed) -> Reason | None:
    """What keeps a pod from running well; None while nothing is wrong, as far as Kubernetes knows."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    scheduled = condition_of(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        said = str(scheduled.get("message") or "is not scheduled")
        if UNBOUND in said:
            return Reason("VolumePending", _short(f"pod {name}: {said}"))
        if scheduled.get("reason") == "SchedulerError":  # a conflict of its own; it tries again at once
            return None
        reason = scheduled.get("reason") or "Unschedulable"
        return Reason(reason, _short(f"pod {name}: {said}"))
    if status.get("reason") == "Evicted":
        return Reason("Evicted", _short(f"pod {name}: {status.get('message') or 'was evicted'}"))
    for container in _containers(pod):
        why = _waiting(container) or _ended(container)
        if why is not None:
            return Reason(why.reason, _short(f"pod {name}: {why.message}"))
    if status.get("phase") == "Pending":
        mount = observed.warned(str(pod["metadata"].get("uid")), *MOUNT_REASONS)
        if mount is not None:
            return Reason(_mount_reason(mount.message), _short(f"pod {name}: {mount.message}"))
    return None


def creation_problem(owner: Object, observed: Observed) -> Reason | None:
    """Reason a StatefulSet or Job could not make its pods: refused by quota, by Pod Security, by admission."""
    warned = observed.warned(str(owner["metadata"].get("uid")), "FailedCreate")
    if warned is None:
        return None
    reason = "Refused"
    if "exceeded quota" in warned.message:
        reason = "QuotaExceeded"
    elif "violates PodSecurity" in warned.message:
        reason = "PodSecurity"
    return Reason(reason, _short(f"{owner['kind']} {owner['metadata']['name']}: {warned.message}"))


def claim_problem(claim: Object | None, observed: Observed) -> Reason | None:
    """Reason the volume is not there yet; None once it is bound."""
    if claim is None:
        return Reason("Creating", "the volume claim is being made")
    name, phase = claim["metadata"]["name"], (claim.get("status") or {}).get("phase", "Pending")
    if phase == "Bound":
        return None
    if phase == "Lost":
        return Reason(
            "VolumeLost", f"PersistentVolumeClaim {name} has lost its volume; restore it, or delete the claim"
        )
    warned = observed.warned(str(claim["metadata"].get("uid")), "ProvisioningFailed", "FailedBinding")
    if warned is not None:
        return Reason("ProvisioningFailed", _short(f"PersistentVolumeClaim {name}: {warned.message}"))
    return Reason("VolumePending", f"PersistentVolumeClaim {name} is not bound yet; it may wait for the first pod")


def job_failure(job: Object, pods: Sequence[Object], *, nodes: int) -> Failure | None:
    """How a Job of ``nodes`` pods failed, from its condition and what is left of them; None unless it did."""
    failed = condition_of(job, "Failed")
    if failed is None or failed.get("status") != "True":
        return None
    at = parse(failed["lastTransitionTime"])
    disrupted = [pod for pod in pods if (condition_of(pod, DISRUPTED) or {}).get("status") == "True"]
    if disrupted or failed.get("reason") == "PodFailurePolicy":
        said = (condition_of(disrupted[0], DISRUPTED) if disrupted else failed) or {}
        why = Reason("Disrupted", _short(str(said.get("message") or "the pod was disrupted")))
        return Failure(why, at, disruption=True)
    own = sorted((pod for pod in pods if _failed(pod) and not is_terminating(pod)), key=_ended_at)
    causes = [pod for pod in own if not _followed(pod)]
    if not causes and len(own) < nodes:
        gone = _named([pod for pod in pods if pod not in own]) or "a pod of the trainer"
        text = f"{gone} was deleted" + (f"; {_named(own)} ended after it" if own else "")
        return Failure(Reason("PodDeleted", text), at, disruption=True)
    return _own_failure((causes or own)[0], at)


def _named(pods: Sequence[Object]) -> str:
    return ", ".join(str(pod["metadata"]["name"]) for pod in pods)


def _followed(pod: Object) -> bool:
    """Whether a failed pod ended only because another one did: its rank lost that one's, or was told to stop by it."""
    ends = [(container.get("state") or {}).get("terminated") or {} for container in _containers(pod)]
    return any(
        (found := ROOT_CAUSE.search(str(end.get("message") or ""))) is not None and int(found[1]) in FOLLOWED
        for end in ends
    )


def _own_failure(pod: Object, at: datetime) -> Failure:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for container in _containers(pod):
        ended = (container.get("state") or {}).get("terminated")
        if ended is None or ended.get("exitCode") == 0:
            continue
        if INVALID.search(str(ended.get("message") or "")):
            return Failure(Reason("InvalidConfiguration", _short(f"pod {name}: {_tail(ended)}")), at, final=True)
        why = _terminated(container["name"], ended)
        return Failure(Reason(why.reason, _short(f"pod {name}: {why.message}")), at)
    message = status.get("message") or f"ended as {status.get('phase')}"
    return Failure(Reason(status.get("reason") or "TrainerFailed", _short(f"pod {name}: {message}")), at)


def _containers(pod: Object) -> Iterator[Object]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _waiting(container: Object) -> Reason | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message") or waiting.get("reason", "")
    if reason in PULL_REASONS:
        return Reason(
            "ImagePull", f"image {container.get('image')} cannot be pulled: {BACK_OFF.sub('back-off ', message)}"
        )
    if reason == "CrashLoopBackOff":
        last = (container.get("lastState") or {}).get("terminated")
        why = _terminated(container["name"], last) if last else Reason("CrashLoop", BACK_OFF.sub("back-off ", message))
        reason = "CrashLoop" if why.reason == "ContainerFailed" else why.reason
        return Reason(
            reason, f"{why.message}; it is restarted again and again ({container.get('restartCount', 0)} times)"
        )
    if reason == "CreateContainerConfigError":
        return Reason("MissingSecret" if "secret" in message.lower() else "ContainerConfig", message)
    if reason in ("CreateContainerError", "RunContainerError", "StartError"):
        return Reason("ContainerStart", message)
    return None


def _ended(container: Object) -> Reason | None:
    ended = (container.get("state") or {}).get("terminated")
    return _terminated(container["name"], ended) if ended and ended.get("exitCode") != 0 else None


def _terminated(name: str, ended: Object) -> Reason:
    text, status = _tail(ended), ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        return Reason(
            "OutOfMemory", f"container {name} was killed: it used more memory than its limit; raise resources.limits"
        )
    said = str(ended.get("message") or "")
    if FULL.search(said):
        return Reason(
            "VolumeFull", f"container {name} found the volume full; raise storage.size or delete old runs: {text}"
        )
    if MEMORY.search(said):
        return Reason("OutOfMemory", f"container {name} ran out of memory: {text}")
    if ended.get("reason") == "StartError":
        return Reason("ContainerStart", f"container {name} could not be started: {text}")
    return Reason(
        "ContainerFailed", f"container {name} ended with exit status {status}" + (f": {text}" if text else "")
    )


def _tail(ended: Object) -> str:
    """The last words of a container that are worth a line."""
    lines = [line.strip() for line in str(ended.get("message") or "").splitlines() if line.strip(" =-^~")]
    errors = [line for line in lines if re.match(r"(error: |[\w.]*(Error|Exception)\b)", line)]
    if not lines:
        return ""
    return (errors or lines)[-1][:400]


def _mount_reason(message: str) -> str:
    if re.search(r'secret ".*" not found', message):
        return "MissingSecret"
    return "MissingConfigMap" if re.search(r'configmap ".*" not found', message) else "VolumeMount"


def _failed(pod: Object) -> bool:
    return not is_active(pod) and (pod.get("status") or {}).get("phase") == "Failed"


def _ended_at(pod: Object) -> str:
    ends = [(container.get("state") or {}).get("terminated") or {} for container in _containers(pod)]
    return min((str(end["finishedAt"]) for end in ends if end.get("finishedAt") and end.get("exitCode")), default="~")


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def component_problem(observed: Observed, owner: Object | None, pods: Sequence[Object]) -> Reason | None:
    """The first problem of a set of pods, or of making them."""
    for pod in pods:
        why = pod_problem(pod, observed)
        if why is not None:
            return why
    return creation_problem(owner, observed) if owner is not None else None
