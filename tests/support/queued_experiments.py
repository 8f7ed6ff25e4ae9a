"""Experiments in queues of Kueue: how they are made, and what exists of them."""

from __future__ import annotations

from typing import Any, Protocol

from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.kube_api import Object

CPUS = {"requests": {"cpu": "2"}}
CONSUMING = ("StatefulSet", "Job", "Pod", "PersistentVolumeClaim")


class MakeExperiment(Protocol):
    """Creates an experiment in a queue; ``changes`` as those of ``Experiment.apply``."""

    def __call__(self, name: str, queue: str, *, priority: str | None = None, **changes: Any) -> Experiment: ...


def maker(namespace: Namespace) -> MakeExperiment:
    """Makes experiments of three pods with two CPUs each: two servers and a trainer."""

    def make(name: str, queue: str, *, priority: str | None = None, **changes: Any) -> Experiment:
        labels = {"kueue.x-k8s.io/queue-name": queue}
        labels |= {} if priority is None else {"kueue.x-k8s.io/priority-class": priority}
        defaults = {"servers.replicas": 2, "servers.resources": CPUS, "trainer.resources": CPUS}
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return Experiment(namespace, name, {**defaults, **dotted}, labels).apply()

    return make


def workload(experiment: Experiment) -> Object:
    """The Workload of an experiment; empty if there is none."""
    namespace = experiment.namespace
    return namespace.api.get("Workload", namespace.name, f"{experiment.name}-run") or {}


def condition(obj: Object, kind: str) -> Object:
    """A condition of an object; empty if it is missing."""
    found = [one for one in (obj.get("status") or {}).get("conditions", []) if one["type"] == kind]
    return dict(found[0]) if found else {}


def is_true(obj: Object, kind: str) -> bool:
    """Whether a condition of an object is True."""
    return condition(obj, kind).get("status") == "True"


def consuming(experiment: Experiment) -> list[str]:
    """Names of the experiment's objects that use something or create pods."""
    names = [name for kind in CONSUMING for name in experiment.namespace.names(kind)]
    return [name for name in names if name.startswith(f"{experiment.name}-")]
