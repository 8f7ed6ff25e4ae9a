"""Objects as the API server holds them, for tests of the operator's decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from areal_api import resource_names
from areal_api.experiment import GRPOExperiment
from areal_api.load import parse_experiment
from areal_api.status import ExperimentStatus
from areal_operator.clock import show
from areal_operator.manifests.base import DIGEST, Manifest
from areal_operator.observed import ExperimentState, Object, Observed, WarningEvent
from areal_operator.plan import Plan, plan
from areal_operator.settings import Settings
from support.experiment_cases import Case

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
IMAGES = {(kind, device): f"{kind}:{device}" for kind in ("trainer", "server") for device in ("cuda", "cpu")}
SETTINGS = Settings(images=IMAGES, progress_url="http://operator:8080")
UID = "uid-1"


def later(seconds: float) -> datetime:
    """A time after NOW."""
    return NOW + timedelta(seconds=seconds)


def experiment(**changes: Any) -> GRPOExperiment:
    """The smallest experiment with changes below ``spec``; ``__`` stands for a dot."""
    dotted = {f"spec.{key.replace('__', '.')}": value for key, value in changes.items()}
    return parse_experiment(Case("", dotted).experiment(), source="case")


def state(status: ExperimentStatus | None = None, **changes: Any) -> ExperimentState:
    """The experiment as the operator sees it."""
    return ExperimentState(experiment(**changes), "ns", UID, 1, status or ExperimentStatus())


def decide(
    state: ExperimentState, *objects: Object, now: datetime = NOW, warnings: tuple[WarningEvent, ...] = (), **more: Any
) -> Plan:
    """The plan for what is observed."""
    by_kind: dict[str, list[Object]] = {}
    for obj in objects:
        by_kind.setdefault(obj["kind"], []).append(obj)
    return plan(state, Observed(by_kind, warnings), now, settings=SETTINGS, api_key="s3cret", **more)


def continued(state: ExperimentState, plan: Plan) -> ExperimentState:
    """The state once the plan's status is written."""
    return ExperimentState(state.experiment, state.namespace, state.uid, state.generation, plan.status)


def named(plan: Plan) -> list[str]:
    """``Kind name`` of what is applied."""
    return [f"{manifest['kind']} {manifest['metadata']['name']}" for manifest in plan.objects]


def manifest(plan: Plan, kind: str) -> Manifest:
    """The one manifest of a kind."""
    (found,) = [manifest for manifest in plan.objects if manifest["kind"] == kind]
    return found


def job(
    attempt: int, outcome: str | None = None, *, reason: str = "BackoffLimitExceeded", at: datetime = NOW
) -> Object:
    """A Job; ``outcome`` is Complete or Failed."""
    conditions = []
    if outcome:
        conditions = [{"type": outcome, "status": "True", "reason": reason, "lastTransitionTime": show(NOW)}]
    metadata = {
        "name": resource_names.trainer_job("case", attempt),
        "uid": f"job-{attempt}",
        "annotations": {DIGEST: "old"},
    }
    return {"kind": "Job", "metadata": metadata, "status": {"conditions": conditions}}


def server_set() -> Object:
    """The StatefulSet of the servers."""
    return {"kind": "StatefulSet", "metadata": {"name": "case-server", "uid": "set"}, "status": {}}


def claim(phase: str = "Bound", size: str = "100Gi") -> Object:
    """The volume claim."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}, "storageClassName": "fast"}
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "case-run", "uid": "claim"},
        "spec": spec,
        "status": {"phase": phase},
    }


def pod(component: str, index: int = 0, *, attempt: int = 1, **status: Any) -> Object:
    """A pod, Running and Ready unless ``status`` says otherwise."""
    name = f"case-server-{index}" if component == resource_names.SERVER else f"case-trainer-{attempt}-{index}-x"
    labels = resource_names.component_labels("case", component)
    if component == resource_names.TRAINER:
        labels[resource_names.ATTEMPT] = str(attempt)
    ready = [{"type": "Ready", "status": "True"}]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": f"pod-{name}", "labels": labels},
        "status": {"phase": "Running", "conditions": ready, **status},
    }


def ended(exit_code: int, *, reason: str = "Error", message: str = "") -> dict[str, Any]:
    """The status of a pod whose container ended."""
    state = {"exitCode": exit_code, "reason": reason, "message": message, "finishedAt": "2026-01-31T12:00:00Z"}
    return {
        "phase": "Failed" if exit_code else "Succeeded",
        "conditions": [],
        "containerStatuses": [{"name": "trainer", "image": "i", "state": {"terminated": state}}],
    }


def leaving(obj: Object) -> Object:
    """The object after it was deleted, while its end is awaited."""
    return {**obj, "metadata": {**obj["metadata"], "deletionTimestamp": "2026-01-31T12:00:00Z"}}
