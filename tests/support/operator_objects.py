"""Objects as stored by the API server, for tests of the operator's decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from areal_api import resource_names
from areal_api.experiment import GRPOExperiment
from areal_api.load import parse_experiment
from areal_api.resource_names import SERVER, TRAINER
from areal_api.status import Condition, ExperimentStatus
from areal_operator.clock import show
from areal_operator.manifests.base import CREATED_FOR, DIGEST, Manifest
from areal_operator.observed import (
    DELETION_WATCHED,
    LAST_SEEN,
    ExperimentState,
    KueueObjects,
    Object,
    Observed,
    WarningEvent,
)
from areal_operator.plan import Plan, plan
from areal_operator.settings import Settings
from areal_operator.status import find
from hack.testbed.experiment_case import Case

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
IMAGES = {(kind, device): f"{kind}:{device}" for kind in ("trainer", "server") for device in ("cuda", "cpu")}
SETTINGS = Settings(images=IMAGES, progress_url="http://operator:8080", status_s=0.0)
UID = "uid-1"


def later(seconds: float) -> datetime:
    """A time after NOW."""
    return NOW + timedelta(seconds=seconds)


def experiment(**changes: Any) -> GRPOExperiment:
    """The smallest experiment with changes below ``spec``; ``__`` stands for a dot."""
    dotted = {f"spec.{key.replace('__', '.')}": value for key, value in changes.items()}
    return parse_experiment(Case("", dotted).experiment(), source="case")


def state(status: ExperimentStatus | None = None, **changes: Any) -> ExperimentState:
    """The experiment as the operator reads it."""
    return ExperimentState(experiment(**changes), "ns", UID, 1, status or ExperimentStatus())


def decide(
    state: ExperimentState,
    *objects: Object,
    now: datetime = NOW,
    warnings: tuple[WarningEvent, ...] = (),
    deleted: tuple[Object, ...] = (),
    settings: Settings | None = None,
    kueue: KueueObjects | None = None,
    refused: dict[str, str] | None = None,
    quotas: tuple[Object, ...] = (),
    **more: Any,
) -> Plan:
    """The plan for the observed ``objects``."""
    by_kind: dict[str, list[Object]] = {}
    for obj in objects:
        by_kind.setdefault(obj["kind"], []).append(obj)
    observed = Observed(by_kind, warnings, deleted, kueue or KueueObjects(), quotas, refused or {})
    return plan(state, observed, now, settings=settings or SETTINGS, api_key="s3cret", gateway_key="adm1n", **more)


def continued(state: ExperimentState, plan: Plan) -> ExperimentState:
    """The experiment after the plan's status was written."""
    return ExperimentState(state.experiment, state.namespace, state.uid, state.generation, plan.status)


def named(plan: Plan) -> list[str]:
    """``Kind name`` of every object to apply."""
    return [f"{manifest['kind']} {manifest['metadata']['name']}" for manifest in plan.objects]


def manifest(plan: Plan, kind: str) -> Manifest:
    """The one manifest of a kind."""
    (only,) = [manifest for manifest in plan.objects if manifest["kind"] == kind]
    return only


def job(attempt: int, outcome: str | None = None, *, reason: str = "BackoffLimitExceeded", nodes: int = 1) -> Object:
    """A Job; ``outcome`` is Complete or Failed."""
    conditions = []
    if outcome:
        conditions = [{"type": outcome, "status": "True", "reason": reason, "lastTransitionTime": show(NOW)}]
    metadata = {
        "name": resource_names.trainer_job("case", attempt),
        "uid": f"job-{attempt}",
        "labels": {resource_names.ATTEMPT: str(attempt)},
        "annotations": {DIGEST: "old"},
    }
    return {"kind": "Job", "metadata": metadata, "spec": {"completions": nodes}, "status": {"conditions": conditions}}


def deleted(obj: Object, how: str = DELETION_WATCHED) -> Object:
    """The last known state of an object that no longer exists."""
    return {**obj, LAST_SEEN: how}


def server_set() -> Object:
    """The StatefulSet of the servers."""
    return {"kind": "StatefulSet", "metadata": {"name": "case-server", "uid": "set"}, "status": {}}


def claim(phase: str = "Bound", size: str = "100Gi", *, created_for: str | None = UID, **spec: Any) -> Object:
    """The volume claim; ``created_for`` None: somebody else created it."""
    labels = {} if created_for is None else resource_names.labels("case")
    annotations = {} if created_for is None else {CREATED_FOR: created_for}
    default = {"accessModes": ["ReadWriteMany"], "storageClassName": "fast"}
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "case-run", "uid": "claim", "labels": labels, "annotations": annotations},
        "spec": {**default, "resources": {"requests": {"storage": size}}, **spec},
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


def exited(exit_code: int, *, reason: str = "Error", message: str = "", sidecar: str | None = None) -> dict[str, Any]:
    """The status of a pod whose trainer has exited; a ``sidecar`` of this name still runs."""
    ended = {"exitCode": exit_code, "reason": reason, "message": message, "finishedAt": "2026-01-31T12:00:00Z"}
    containers: list[Object] = [{"name": "trainer", "image": "i", "state": {"terminated": ended}}]
    if sidecar is not None:
        containers.insert(0, {"name": sidecar, "image": "s", "state": {"running": {"startedAt": "…"}}})
    phase = "Failed" if exit_code else "Succeeded"
    return {"phase": "Running" if sidecar else phase, "conditions": [], "containerStatuses": containers}


def terminating(obj: Object) -> Object:
    """The object after it was deleted, while it still exists."""
    return {**obj, "metadata": {**obj["metadata"], "deletionTimestamp": "2026-01-31T12:00:00Z"}}


RUNNING = (server_set(), claim(), job(1), pod(SERVER), pod(TRAINER))


def started(**changes: Any) -> ExperimentState:
    """An experiment whose first attempt is starting."""
    fresh = state(**changes)
    return continued(fresh, decide(fresh))


def running(**changes: Any) -> ExperimentState:
    """An experiment whose pods run."""
    begun = started(**changes)
    return continued(begun, decide(begun, *RUNNING))


def condition(status: ExperimentStatus, kind: str) -> Condition:
    """The condition of this type, which must exist."""
    found = find(status.conditions, kind)
    assert found is not None
    return found
