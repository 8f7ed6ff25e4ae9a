"""Names of Kueue 0.17: labels, annotations, kinds and condition types."""

from __future__ import annotations

from typing import Any

PREFIX = "kueue.x-k8s.io/"
API_VERSION = "kueue.x-k8s.io/v1beta2"
VISIBILITY = "visibility.kueue.x-k8s.io/v1beta2"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
POD_SET_LABEL = "kueue.x-k8s.io/podset"
WORKLOAD_ANNOTATION = "kueue.x-k8s.io/workload"
TOPOLOGY_GATE = "kueue.x-k8s.io/topology"  # scheduling gate: Kueue removes it once it has chosen the node
TOPOLOGY_ANNOTATIONS = {
    "required": "kueue.x-k8s.io/podset-required-topology",
    "preferred": "kueue.x-k8s.io/podset-preferred-topology",
    "unconstrained": "kueue.x-k8s.io/podset-unconstrained-topology",
}

WORKLOAD = "Workload"
FLAVOR = "ResourceFlavor"
PRIORITY_CLASS = "WorkloadPriorityClass"
POD_PRIORITY_CLASS = "PriorityClass"  # Kubernetes' own, which Workloads may name as well
PRIORITY_GROUPS = {PRIORITY_CLASS: "kueue.x-k8s.io", POD_PRIORITY_CLASS: "scheduling.k8s.io"}
KINDS: dict[str, tuple[str, str]] = {
    WORKLOAD: (API_VERSION, "workloads"),
    FLAVOR: (API_VERSION, "resourceflavors"),
    PRIORITY_CLASS: (API_VERSION, "workloadpriorityclasses"),
    POD_PRIORITY_CLASS: ("scheduling.k8s.io/v1", "priorityclasses"),
}

# Condition types of a Workload.
QUOTA_RESERVED, ADMITTED, EVICTED, REQUEUED = "QuotaReserved", "Admitted", "Evicted", "Requeued"
PODS_READY, FINISHED = "PodsReady", "Finished"

MAX_POD_SETS = 8  # of a Workload

WORKLOAD_SPEC = ("queueName", "active", "priority")  # what decisions need
WORKLOAD_STATUS = ("conditions", "admission", "admissionChecks", "reclaimablePods")


def slim_workload(obj: dict[str, Any]) -> dict[str, Any]:
    """The parts of a Workload that decisions need; its conditions are complete, because they are written whole."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    pod_sets = [{key: one[key] for key in ("name", "count") if key in one} for one in spec.get("podSets") or ()]
    kept = {key: status[key] for key in WORKLOAD_STATUS if key in status}
    return {"spec": {**{key: spec[key] for key in WORKLOAD_SPEC if key in spec}, "podSets": pod_sets}, "status": kept}
