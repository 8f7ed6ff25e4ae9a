"""Workloads and experiments in queues as stored by the API server, for tests of the operator's decisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from areal_api.status import ExperimentStatus
from areal_operator.observed import ExperimentState, KueueObjects, Object
from areal_operator.plan import Plan
from areal_operator.queueing import kueue
from areal_operator.queueing.workload import GANG
from support.operator_objects import SETTINGS, UID, continued, decide, state

QUEUE = "team-a"
ENABLED = replace(SETTINGS, kueue=True)
FLAVORS = {"a100": {"spec": {"nodeLabels": {"gpu": "a100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}}}
KNOWN = KueueObjects(flavors=FLAVORS)


def queued_state(
    status: ExperimentStatus | None = None, *, labels: dict[str, str] | None = None, **changes: Any
) -> ExperimentState:
    """An experiment in the queue, or with other ``labels``."""
    made = state(status, **changes)
    metadata = made.experiment.metadata.model_copy(
        update={"labels": {kueue.QUEUE_LABEL: QUEUE} if labels is None else labels}
    )
    return replace(made, experiment=made.experiment.model_copy(update={"metadata": metadata}))


def decide_queued(state: ExperimentState, *objects: Object, known: KueueObjects = KNOWN, **more: Any) -> Plan:
    """The plan of an operator that uses Kueue."""
    return decide(state, *objects, kueue=known, **{"settings": ENABLED, **more})


def stored_workload(
    of: ExperimentState, *conditions: Object, servers: int | None = None, flavor: str = "a100", **status: Any
) -> Object:
    """The Workload as it is cached; with ``servers`` it is assigned that many and a trainer."""
    plan = decide_queued(of if of.status.attempt == 0 else replace(of, status=ExperimentStatus()))
    (made,) = [manifest for manifest in plan.objects if manifest["kind"] == kueue.WORKLOAD]
    if servers is not None:
        counts = {one["name"]: one["count"] for one in made["spec"]["podSets"]} | {"servers": servers}
        assignments = [
            {"name": name, "count": count, "flavors": {"nvidia.com/gpu": flavor}} for name, count in counts.items()
        ]
        status = {"admission": {"clusterQueue": "all", "podSetAssignments": assignments}, **status}
    metadata = {
        "name": made["metadata"]["name"],
        "namespace": "ns",
        "uid": "workload",
        "resourceVersion": "7",
        "annotations": {GANG: made["metadata"]["annotations"][GANG]},
        "ownerReferences": [{"uid": UID, "controller": True}],
    }
    body = {"spec": made["spec"], "status": {**status, "conditions": list(conditions)}}
    return {"kind": kueue.WORKLOAD, "metadata": metadata, **kueue.slim_workload(body)}


def said(kind: str, status: str = "True", reason: str = "", message: str = "") -> Object:
    """A condition of a Workload."""
    return {
        "type": kind,
        "status": status,
        "reason": reason or kind,
        "message": message,
        "lastTransitionTime": "2026-01-31T11:00:00Z",
    }


RESERVED = said(kueue.QUOTA_RESERVED)
ADMITTED = (RESERVED, said(kueue.ADMITTED))
PREEMPTED = said(kueue.EVICTED, reason="Preempted", message="Preempted to accommodate a workload")


def admitted(of: ExperimentState, *more: Object, servers: int = 1, **status: Any) -> Object:
    """The admitted Workload."""
    return stored_workload(of, *ADMITTED, *more, servers=servers, **status)


def queued_and_started(**changes: Any) -> ExperimentState:
    """An experiment in the queue whose first attempt is starting."""
    fresh = queued_state(**changes)
    return continued(fresh, decide_queued(fresh, admitted(fresh, servers=fresh.experiment.spec.servers.replicas)))
