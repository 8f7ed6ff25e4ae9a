"""The Workload of an experiment: one pod set each for servers, every pool, trainer, agent and tool. Pure.

Servers above ``servers.autoscale.min`` have a Workload each, so that Kueue can take them back one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from areal_api import resource_names
from areal_api.agents import AgentPod, ToolSpec
from areal_operator.manifests import agents, servers, trainer
from areal_operator.manifests.base import Build, Manifest, digest, owned
from areal_operator.queueing import kueue

SERVERS, TRAINER = "servers", "trainer"  # pod sets
GANG = "areal.dev/gang"  # annotation: digest of what quota is reserved for, except the number of servers
_POD_FIELDS = ("nodeSelector", "tolerations", "runtimeClassName", "priorityClassName", "resourceClaims")
_INDEX_LABELS = {TRAINER: "batch.kubernetes.io/job-completion-index"}  # else StatefulSets
_SET_INDEX = "apps.kubernetes.io/pod-index"


@dataclass(frozen=True)
class Priority:
    """A priority class, and its value, which Kueue requires beside the name."""

    kind: str
    name: str
    value: int | None  # None: the class does not exist

    @property
    def reference(self) -> Manifest:
        """The class as Workloads name it."""
        return {"group": kueue.PRIORITY_GROUPS[self.kind], "kind": self.kind, "name": self.name}


def workload(build: Build, queue: str, *, priority: Priority | None) -> Manifest:
    """The Workload, built before any flavor was assigned. Raises ``ValueError`` for more pod sets than Kueue takes."""
    pod_sets = _pod_sets(build)
    if len(pod_sets) > kueue.MAX_POD_SETS:
        raise ValueError(
            f"servers.pools, agents and tools are {len(pod_sets) - 2} together, and in a queue of Kueue at most "
            f"{kueue.MAX_POD_SETS - 2} are possible; remove some"
        )
    labels = resource_names.labels(build.name)
    return _workload(build, resource_names.workload(build.name), queue, pod_sets, labels=labels, priority=priority)


def borrowed_workloads(
    build: Build, numbers: Sequence[int], queue: str, *, priority: Priority | None
) -> dict[int, Manifest]:
    """The Workloads of servers above ``servers.autoscale.min``, by number. They request the same."""
    if not numbers:
        return {}
    servers_spec = build.experiment.spec.servers
    template = servers.borrowed_set(build, numbers[0])
    pod_set = _pod_set(SERVERS, template, servers_spec.nodes_per_server, servers_spec.pod_annotations)
    if "topologyRequest" in pod_set:
        del pod_set["topologyRequest"]["podIndexLabel"]  # Kueue expects the first pod to have the index 0
    return {
        number: _workload(
            build,
            resource_names.borrowed_server(build.name, number),
            queue,
            [pod_set],
            labels={**resource_names.labels(build.name), resource_names.BORROWED: str(number)},
            priority=priority,
        )
        for number in numbers
    }


def _workload(
    build: Build, name: str, queue: str, pod_sets: list[Manifest], *, labels: Manifest, priority: Priority | None
) -> Manifest:
    spec: Manifest = {"queueName": queue, "podSets": pod_sets}
    if priority is not None:
        spec |= {"priorityClassRef": priority.reference, "priority": priority.value}
    return owned(
        build,
        api_version=kueue.API_VERSION,
        kind=kueue.WORKLOAD,
        name=name,
        labels=labels,
        annotations={GANG: _gang(queue, pod_sets)},
        body={"spec": spec},
    )


def pod_set_of(program: AgentPod) -> str:
    """The name of the pod set of an agent or a tool."""
    return f"{'tool' if isinstance(program, ToolSpec) else 'agent'}-{program.name}"


def pod_set_of_pool(pool: str | None) -> str:
    """The name of the pod set of a pool of servers; of None that of the other servers."""
    return SERVERS if pool is None else f"pool-{pool}"


def _pod_sets(build: Build) -> list[Manifest]:
    spec = build.experiment.spec
    wanted, least = spec.servers.guaranteed * spec.servers.nodes_per_server, spec.servers.min_pods
    owner = servers.server_set(build, spec.servers.replicas)
    server_pods = _pod_set(SERVERS, owner, wanted, spec.servers.pod_annotations)
    if least < wanted:
        server_pods["minCount"] = least
    pools = zip(spec.servers.groups[1:], servers.pool_sets(build), strict=True)
    return [
        server_pods,
        *(
            _pod_set(pod_set_of_pool(one.pool), owner, one.servers.pods, one.servers.pod_annotations)
            for one, owner in pools
        ),
        _pod_set(TRAINER, trainer.trainer_job(build), spec.trainer.nodes, spec.trainer.pod_annotations),
        *(
            _pod_set(pod_set_of(one), agents.program_set(build, one), one.replicas, one.pod_annotations)
            for one in (*spec.agents, *spec.tools)
        ),
    ]


def _pod_set(name: str, owner: Manifest, count: int, annotations: dict[str, str]) -> Manifest:
    result: Manifest = {"name": name, "count": count, "template": _essential(owner["spec"]["template"])}
    topology = _topology(annotations)
    if topology:
        result["topologyRequest"] = {**topology, "podIndexLabel": _INDEX_LABELS.get(name, _SET_INDEX)}
    return result


def _essential(template: Manifest) -> Manifest:
    """What decides about quota and flavors. Commands and images would only make every edit a change of the gang."""
    spec = template["spec"]
    kept: Manifest = {field: spec[field] for field in _POD_FIELDS if field in spec}
    node_affinity = (spec.get("affinity") or {}).get("nodeAffinity")
    if node_affinity:
        kept["affinity"] = {"nodeAffinity": node_affinity}
    for field in ("initContainers", "containers"):
        if field in spec:
            kept[field] = [_counted(one) for one in spec[field]]
    return {"spec": kept}


def _counted(container: Manifest) -> Manifest:
    """What of a container counts. The requests of a sidecar are added to those of the others."""
    kept: Manifest = {key: container[key] for key in ("name", "restartPolicy") if key in container}
    return {**kept, "resources": _requests(container["resources"])}


def _requests(resources: Manifest) -> Manifest:
    """The requests, as the API server completes them from the limits; and the claims of devices."""
    requests = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {key: value for key, value in (("requests", requests), ("claims", resources.get("claims"))) if value}


def _topology(annotations: dict[str, str]) -> dict[str, Any]:
    """The topology request in the annotations that Kueue defines for pods. Raises ``ValueError`` for two of them."""
    found = {key: annotations[name] for key, name in kueue.TOPOLOGY_ANNOTATIONS.items() if name in annotations}
    if len(found) > 1:
        names = " and ".join(kueue.TOPOLOGY_ANNOTATIONS[key] for key in found)
        raise ValueError(f"podAnnotations has {names}; keep one")
    return {"unconstrained": found["unconstrained"] == "true"} if "unconstrained" in found else dict(found)


def _gang(queue: str, pod_sets: list[Manifest]) -> str:
    kept = [{key: value for key, value in one.items() if key != "minCount"} for one in pod_sets]
    kept[0].pop("count")  # of servers, which may change during a run
    return digest([queue, kept])[:16]
