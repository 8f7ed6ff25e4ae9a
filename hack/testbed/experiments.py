"""Experiments of a test on a control plane: create, edit, read, wait."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from areal_api.areal_config.tree import set_in
from areal_api.experiment import KIND
from hack.testbed.experiment_case import Case
from hack.testbed.fake_kubelet import Behaviour, FakeKubelet
from hack.testbed.kube_api import Api, Object, eventually


@dataclass
class Namespace:
    """A namespace of one test."""

    api: Api
    kubelet: FakeKubelet
    name: str

    def behave(self, component: str, behaviour: Behaviour) -> None:
        """Set how pods of a component behave."""
        self.kubelet.set(self.name, component, behaviour)

    def list(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return self.api.list(kind, self.name)

    def names(self, kind: str) -> list[str]:
        """Names of all objects of a kind that are not terminating."""
        objects = self.list(kind)
        return sorted(obj["metadata"]["name"] for obj in objects if not obj["metadata"].get("deletionTimestamp"))

    def refuse_pods(self) -> None:
        """Create the quota ``none``, under which no pod can be created; return once it is in force.

        It has a scope, so that it does not show before a start that a run can never fit.
        """
        spec = {"hard": {"pods": "0"}, "scopes": ["NotTerminating"]}
        body = {"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "none"}, "spec": spec}
        self.api.create(body, self.name)

        def in_force() -> Object:
            found = self.api.get("ResourceQuota", self.name, "none") or {}
            return dict((found.get("status") or {}).get("hard") or {})

        eventually(lambda: in_force() or None, "the quota is in force")

    def events(self, reason: str) -> list[Object]:
        """Events with a reason."""
        return [event for event in self.list("Event") if event["reason"] == reason]


@dataclass
class Experiment:
    """One experiment. ``changes`` are dotted keys below ``spec``, ``labels`` its own."""

    namespace: Namespace
    name: str = "exp"
    changes: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def body(self) -> Object:
        """The object as it is created."""
        data = Case("", {"metadata.name": self.name}).experiment()
        data["metadata"]["labels"] = {**data["metadata"].get("labels", {}), **self.labels}
        set_in(data, "spec.servers.device", "cpu")
        set_in(data, "spec.trainer.device", "cpu")
        for key, value in self.changes.items():
            set_in(data, f"spec.{key}", copy.deepcopy(value))
        return data

    def apply(self, **changes: Any) -> Experiment:
        """Create it; ``__`` in the names of changes stands for a dot."""
        self.changes |= {key.replace("__", "."): value for key, value in changes.items()}
        self.namespace.api.create(self.body(), self.namespace.name)
        return self

    def edit(self, **changes: Any) -> None:
        """Change its spec."""
        patch: Object = {}
        for key, value in changes.items():
            set_in(patch, f"spec.{key.replace('__', '.')}", value)
        self.namespace.api.patch(KIND, self.namespace.name, self.name, patch)

    def delete(self) -> None:
        """Delete it."""
        self.namespace.api.delete(KIND, self.namespace.name, self.name)

    def get(self) -> Object | None:
        """The current object."""
        return self.namespace.api.get(KIND, self.namespace.name, self.name)

    @property
    def status(self) -> Object:
        """Its status."""
        return dict((self.get() or {}).get("status") or {})

    def condition(self, kind: str) -> Object:
        """A condition; empty if it is missing."""
        matching = [one for one in self.status.get("conditions", []) if one["type"] == kind]
        return dict(matching[0]) if matching else {}

    def until(self, what: Callable[[Object], bool], text: str, timeout_s: float = 30.0) -> Object:
        """Wait for a status; the failure message shows the last one."""
        last: Object = {}

        def look() -> Object | None:
            nonlocal last
            last = self.status
            return last if what(last) else None

        try:
            return eventually(look, text, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last status was {last}") from None

    def until_phase(self, phase: str, timeout_s: float = 30.0) -> Object:
        """Wait for a phase."""
        return self.until(lambda status: status.get("phase") == phase, f"phase {phase}", timeout_s)

    def until_reason(self, kind: str, reason: str, timeout_s: float = 30.0) -> Object:
        """Wait for a condition's reason; returns the condition."""

        def has_reason(status: Object) -> bool:
            matching = [one for one in status.get("conditions", []) if one["type"] == kind]
            return bool(matching) and matching[0].get("reason") == reason

        self.until(has_reason, f"condition {kind} with reason {reason}", timeout_s)
        return self.condition(kind)
