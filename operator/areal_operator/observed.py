"""Input of a reconcile: the experiment and every object in the cluster that belongs to it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from areal_api import resource_names
from areal_api.experiment import GRPOExperiment
from areal_api.status import ExperimentStatus
from areal_operator.autoscale import History

Object = dict[str, Any]
ENDED_PODS = ("Succeeded", "Failed")
LAST_SEEN = "areal.dev/last-seen"  # key of a deleted object in the store: how its deletion became known
DELETION_WATCHED = "watched"  # by the watch: the object is in its last state
DELETION_MISSED = "missed"  # by a later listing: the object may have changed before it was deleted


@dataclass(frozen=True)
class ExperimentState:
    """One experiment as stored by the API server."""

    experiment: GRPOExperiment
    namespace: str
    uid: str
    generation: int
    status: ExperimentStatus
    unknown_fields: tuple[str, ...] = ()  # of a newer resource definition; they have no effect
    config_yaml: str | None = None  # the resolved configuration, rendered once; None: render it when needed

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.experiment.name


@dataclass(frozen=True)
class WarningEvent:
    """A Kubernetes Event of type Warning."""

    uid: str  # of the object it is about
    reason: str
    message: str


@dataclass(frozen=True)
class KueueObjects:
    """What the admission of an experiment depends on besides its Workload."""

    refused: str | None = None  # why Workloads cannot be read
    flavors: Mapping[str, Object] = field(default_factory=dict)  # those that its Workloads were assigned, by name
    priority: int | None = None  # value of the priority class that the experiment names; None: there is none
    borrowed_priority: int | None = None  # value of servers.autoscale.priorityClassName; None: it does not exist
    position: int | None = None  # in the LocalQueue, from 1, as far as Kueue tells it


@dataclass(frozen=True)
class Observed:
    """Children by kind, deleted Jobs and trainer pods in their last known state, and warnings, newest last."""

    objects: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    warnings: Sequence[WarningEvent] = ()
    deleted: Sequence[Object] = ()
    kueue: KueueObjects = field(default_factory=KueueObjects)
    quotas: Sequence[Object] = ()  # ResourceQuotas of the namespace, of a run that is to start
    refused: Mapping[str, str] = field(default_factory=dict)  # kinds of pod groups that cannot be read, and why
    load: History | None = None  # what the trainer has reported about the servers, of a run with servers.autoscale

    def get(self, kind: str, name: str) -> Object | None:
        """The child with this name."""
        return next((obj for obj in self.objects.get(kind, ()) if obj["metadata"]["name"] == name), None)

    def get_deleted(self, kind: str, name: str) -> Object | None:
        """The last state of a deleted child."""
        return next((obj for obj in self.deleted if obj["kind"] == kind and obj["metadata"]["name"] == name), None)

    def pods(self, component: str | None = None) -> list[Object]:
        """Pods of one component, or all, by name."""
        pods = self.objects.get("Pod", ())
        selected = [pod for pod in pods if component is None or label(pod, resource_names.COMPONENT) == component]
        return sorted(selected, key=lambda pod: str(pod["metadata"]["name"]))

    def trainer_pods(self, attempt: int) -> list[Object]:
        """Existing pods of one attempt of the trainer."""
        return [pod for pod in self.pods(resource_names.TRAINER) if label(pod, resource_names.ATTEMPT) == str(attempt)]

    def deleted_trainer_pods(self, attempt: int) -> list[Object]:
        """Deleted pods of one attempt of the trainer, in their last known state."""
        return [
            pod for pod in self.deleted if pod["kind"] == "Pod" and label(pod, resource_names.ATTEMPT) == str(attempt)
        ]

    def warning_for(self, uid: str, *reasons: str) -> WarningEvent | None:
        """The newest warning about an object with one of the reasons."""
        matching = [warning for warning in self.warnings if warning.uid == uid and warning.reason in reasons]
        return matching[-1] if matching else None


def label(obj: Object, key: str) -> str | None:
    """The value of a label."""
    value = (obj["metadata"].get("labels") or {}).get(key)
    return None if value is None else str(value)


def annotation(obj: Object, key: str) -> str | None:
    """The value of an annotation."""
    value = (obj["metadata"].get("annotations") or {}).get(key)
    return None if value is None else str(value)


def is_active(pod: Object) -> bool:
    """Whether containers of a pod may still run."""
    return (pod.get("status") or {}).get("phase") not in ENDED_PODS


def is_terminating(obj: Object) -> bool:
    """Whether an object was deleted but still exists."""
    return obj["metadata"].get("deletionTimestamp") is not None


def condition_of(obj: Object, kind: str) -> Object | None:
    """A condition of an object by its type."""
    conditions: list[Object] = (obj.get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition.get("type") == kind), None)


def has_condition(obj: Object, kind: str) -> bool:
    """Whether a condition of an object is True."""
    return (condition_of(obj, kind) or {}).get("status") == "True"


def is_finished(job: Object) -> bool:
    """Whether a Job is complete or failed."""
    return has_condition(job, "Complete") or has_condition(job, "Failed")


def is_ready(pod: Object) -> bool:
    """Whether a pod is Ready and not terminating."""
    return has_condition(pod, "Ready") and not is_terminating(pod) and is_active(pod)


def container_statuses(pod: Object) -> list[Object]:
    """Statuses of the init containers, then of the containers."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def termination_of(pod: Object, container: str) -> Object | None:
    """How a container of a pod ended; None while it runs or waits."""
    for status in container_statuses(pod):
        if status.get("name") == container:
            ended: Object | None = (status.get("state") or {}).get("terminated")
            return ended
    return None
