"""The Workload of an experiment: one pod set each for servers, trainer, and every agent and tool. Pure."""

from __future__ import annotations

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


def workload(build: Build, queue: str, *, priority_class: str | None, priority: int | None) -> Manifest:
    """The Workload, built before any flavor was assigned. Raises ``ValueError`` for more pod sets than Kueue takes.

    ``priority`` is the value of ``priority_class``, which Kueue requires beside its name.
    """
    pod_sets = _pod_sets(build)
    if len(pod_sets) > kueue.MAX_POD_SETS:
        raise ValueError(
            f"agents and tools are {len(pod_sets) - 2}, and in a queue of Kueue at most {kueue.MAX_POD_SETS - 2} "
            "are possible; remove some, or use one pod for several"
        )
    spec: Manifest = {"queueName": queue, "podSets": pod_sets}
    if priority_class is not None:
        reference = {"group": "kueue.x-k8s.io", "kind": kueue.PRIORITY_CLASS, "name": priority_class}
        spec |= {"priorityClassRef": reference, "priority": priority}
    return owned(
        build,
        api_version=kueue.API_VERSION,
        kind=kueue.WORKLOAD,
        name=resource_names.workload(build.name),
        labels=resource_names.labels(build.name),
        annotations={GANG: _gang(queue, pod_sets)},
        body={"spec": spec},
    )


def pod_set_of(program: AgentPod) -> str:
    """The name of the pod set of an agent or a tool."""
    return f"{'tool' if isinstance(program, ToolSpec) else 'agent'}-{program.name}"


def _pod_sets(build: Build) -> list[Manifest]:
    spec = build.experiment.spec
    wanted, least = spec.servers.pods, spec.servers.min_pods
    owner = servers.server_set(build, spec.servers.replicas)
    server_pods = _pod_set(SERVERS, owner, wanted, spec.servers.pod_annotations)
    if least < wanted:
        server_pods["minCount"] = least
    return [
        server_pods,
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
