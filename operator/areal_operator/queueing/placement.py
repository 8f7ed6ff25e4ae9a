"""Where an admitted run may have its pods: what Kueue has assigned to each pod set. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from areal_api.experiment import GRPOExperiment
from areal_api.pods import PodBasics
from areal_api.server_pools import ServerPool
from areal_api.servers import ServersSpec
from areal_operator.observed import Object
from areal_operator.queueing import kueue
from areal_operator.queueing.workload import SERVERS, TRAINER, pod_set_of, pod_set_of_pool

Pods = TypeVar("Pods", bound=PodBasics)
_PLACED = ("node_selector", "tolerations", "pod_labels", "pod_annotations")  # what a placement changes


@dataclass(frozen=True)
class PodSetPlacement:
    """What the pods of one pod set get."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    topology: bool = False  # Kueue chooses the node of each pod


@dataclass(frozen=True)
class Placement:
    """Placements and numbers of pods by pod set; empty without a queue."""

    pod_sets: Mapping[str, PodSetPlacement] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)  # admitted and not handed back

    def placed(self, experiment: GRPOExperiment) -> GRPOExperiment:
        """The experiment as it runs: with the number of servers and the nodes that it was admitted for.

        Only builders of objects read it. The user's object never changes.
        """
        if not self.pod_sets:
            return experiment
        spec = experiment.spec
        granted = self.counts.get(SERVERS, spec.servers.pods) // spec.servers.nodes_per_server
        guaranteed = spec.servers.guaranteed
        replicas = max(1, min(guaranteed, granted)) + spec.servers.replicas - guaranteed
        servers = self._section(SERVERS, spec.servers)
        servers = servers.model_copy(update={"replicas": replicas, "pools": self._pools(spec.servers)})
        changes = {
            "servers": servers,
            "trainer": self._section(TRAINER, spec.trainer),
            "agents": [self._section(pod_set_of(one), one) for one in spec.agents],
            "tools": [self._section(pod_set_of(one), one) for one in spec.tools],
        }
        return experiment.model_copy(update={"spec": spec.model_copy(update=changes)})

    def _pools(self, servers: ServersSpec) -> list[ServerPool]:
        """Each pool with where its own pods go: what it has in common with ``servers`` may differ now."""
        placed = [self._section(pod_set_of_pool(one.pool), one.servers) for one in servers.groups[1:]]
        return [
            pool.model_copy(update={field: getattr(section, field) for field in _PLACED})
            for pool, section in zip(servers.pools, placed, strict=True)
        ]

    def _section(self, pod_set: str, section: Pods) -> Pods:
        assigned = self.pod_sets.get(pod_set)
        if assigned is None:
            return section
        more = [dict(one) for one in assigned.tolerations if one not in section.tolerations]
        changes = {
            "node_selector": {**section.node_selector, **assigned.node_selector},
            "tolerations": [*section.tolerations, *more],
            "pod_labels": {**section.pod_labels, **assigned.labels},
            "pod_annotations": {**section.pod_annotations, **assigned.annotations},
        }
        return section.model_copy(update=changes)


def flavors_of(workload: Object) -> frozenset[str]:
    """The names of the flavors that a Workload was assigned."""
    return frozenset(str(name) for one in _assignments(workload) for name in (one.get("flavors") or {}).values())


def placement_of(workload: Object, flavors: Mapping[str, Object]) -> Placement:
    """The placement of an admitted Workload. ``flavors``: its ResourceFlavors, by name."""
    reclaimed = {str(one["name"]): int(one["count"]) for one in workload["status"].get("reclaimablePods") or ()}
    pod_sets: dict[str, PodSetPlacement] = {}
    counts: dict[str, int] = {}
    requested = {str(one["name"]): int(one["count"]) for one in (workload.get("spec") or {}).get("podSets") or ()}
    for assignment in _assignments(workload):
        name = str(assignment["name"])
        pod_sets[name] = _pod_set(workload, assignment, flavors)
        counts[name] = int(assignment.get("count", requested.get(name, 0))) - reclaimed.get(name, 0)
    return Placement(pod_sets, counts)


def _pod_set(workload: Object, assignment: Object, flavors: Mapping[str, Object]) -> PodSetPlacement:
    """Labels and taints of the flavors, then what admission checks ask for (``podSetUpdates``)."""
    name = str(assignment["name"])
    selector: dict[str, str] = {}
    tolerations: list[Mapping[str, Any]] = []
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    for flavor in sorted(set((assignment.get("flavors") or {}).values())):
        spec = flavors[flavor].get("spec") or {}
        selector |= spec.get("nodeLabels") or {}
        tolerations += spec.get("tolerations") or []
    for update in _updates(workload, name):
        selector |= update.get("nodeSelector") or {}
        tolerations += update.get("tolerations") or []
        labels |= update.get("labels") or {}
        annotations |= update.get("annotations") or {}
    topology = bool(assignment.get("topologyAssignment"))
    if topology:
        labels[kueue.POD_SET_LABEL] = name
        annotations[kueue.WORKLOAD_ANNOTATION] = str(workload["metadata"]["name"])
    return PodSetPlacement(selector, tolerations, labels, annotations, topology)


def _updates(workload: Object, pod_set: str) -> Iterator[Object]:
    for check in workload["status"].get("admissionChecks") or ():
        yield from (update for update in check.get("podSetUpdates") or () if update.get("name") == pod_set)


def _assignments(workload: Object) -> Sequence[Object]:
    admission = (workload.get("status") or {}).get("admission") or {}
    return list(admission.get("podSetAssignments") or ())
