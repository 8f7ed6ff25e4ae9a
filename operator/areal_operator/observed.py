"""What a reconcile looks at: the experiment and everything in the cluster that belongs to it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from areal_api import resource_names
from areal_api.experiment import GRPOExperiment
from areal_api.status import ExperimentStatus

Object = dict[str, Any]
ENDED_PODS = ("Succeeded", "Failed")


@dataclass(frozen=True)
class ExperimentState:
    """One experiment as the API server holds it."""

    experiment: GRPOExperiment
    namespace: str
    uid: str
    generation: int
    status: ExperimentStatus

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.experiment.name


@dataclass(frozen=True)
class WarningEvent:
    """A warning event."""

    uid: str  # of the object it is about
    reason: str
    message: str


@dataclass(frozen=True)
class Observed:
    """Children by kind, and the warnings about them, newest last."""

    objects: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    warnings: Sequence[WarningEvent] = ()

    def get(self, kind: str, name: str) -> Object | None:
        """The child with this name."""
        return next((obj for obj in self.objects.get(kind, ()) if obj["metadata"]["name"] == name), None)

    def pods(self, component: str | None = None) -> list[Object]:
        """Pods of one component, or all, by name."""
        pods = self.objects.get("Pod", ())
        found = [pod for pod in pods if component is None or label(pod, resource_names.COMPONENT) == component]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def trainer_pods(self, attempt: int) -> list[Object]:
        """Pods of one attempt of the trainer."""
        return [pod for pod in self.pods(resource_names.TRAINER) if label(pod, resource_names.ATTEMPT) == str(attempt)]

    def warned(self, uid: str, *reasons: str) -> WarningEvent | None:
        """The newest warning about an object with one of the reasons."""
        found = [warning for warning in self.warnings if warning.uid == uid and warning.reason in reasons]
        return found[-1] if found else None


def label(obj: Object, key: str) -> str | None:
    """The value of a label."""
    value = (obj["metadata"].get("labels") or {}).get(key)
    return None if value is None else str(value)


def is_active(pod: Object) -> bool:
    """Whether containers of a pod may still run."""
    return (pod.get("status") or {}).get("phase") not in ENDED_PODS


def is_terminating(obj: Object) -> bool:
    """Whether an object was deleted and its end is awaited."""
    return obj["metadata"].get("deletionTimestamp") is not None


def condition_of(obj: Object, kind: str) -> Object | None:
    """A condition of an object by its type."""
    conditions: list[Object] = (obj.get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition.get("type") == kind), None)


def is_ready(pod: Object) -> bool:
    """Whether a pod is Ready and not on its way out."""
    ready = condition_of(pod, "Ready")
    return ready is not None and ready.get("status") == "True" and not is_terminating(pod) and is_active(pod)
