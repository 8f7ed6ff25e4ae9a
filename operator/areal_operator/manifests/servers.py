"""The servers' StatefulSet, and the PodDisruptionBudget that keeps drains from evicting them all at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from areal_api import names, resource_names
from areal_api.commands import server_command
from areal_api.pods import MAX_PODS
from areal_api.servers import ServersSpec
from areal_api.time_limits import HEALTH_PERIOD_S, HEALTH_TIMEOUT_S, TimeLimits
from areal_operator.manifests import model_cache
from areal_operator.manifests.base import Build, Manifest, owned
from areal_operator.manifests.pod import (
    API_KEY_FILE,
    CONFIG_FILE,
    compute_threads,
    container,
    environment,
    mounts,
    pod_template,
    resources,
    without_devices,
)

PYTHON = "python3"
MEMORY_PER_GPU_GIB = 12  # host memory requested by default
MEMBERS = "areal.dev/pod-group"  # annotation: the group that the pods are members of
NO_POD = "areal.dev/none"  # a label that no pod has
# Not on the run's volume, which servers cannot write: the trainer must not read files that a server could have planted.
HUB_CACHE = "/tmp/.cache/huggingface"


def server_set(build: Build, replicas: int) -> Manifest:
    """The StatefulSet of ``replicas`` servers, with the pods of each one after the other.

    OnDelete: an edit of the spec never restarts a server that a trainer is using.
    """
    labels = resource_names.component_labels(build.name, resource_names.SERVER)
    return _set(build, replicas, name=resource_names.servers(build.name), labels=labels)


def pool_sets(build: Build) -> tuple[Manifest, ...]:
    """A StatefulSet for each of ``servers.pools``."""
    labels = resource_names.component_labels(build.name, resource_names.SERVER)
    return tuple(
        _set(
            _with_servers(build, group.servers),
            group.servers.replicas,
            name=resource_names.pool_servers(build.name, group.pool),
            labels={**labels, resource_names.POOL: group.pool},
            seed_offset=group.number * MAX_PODS,  # so that no two servers of a run have the same seed
        )
        for group in build.experiment.spec.servers.groups
        if group.pool is not None
    )


def borrowed_set(build: Build, number: int) -> Manifest:
    """The StatefulSet of one server above ``servers.autoscale.min``, so that any of them can be given back.

    Its pods continue the numbers of those before. They are no members of the pods that start together.
    """
    servers = build.experiment.spec.servers
    if servers.autoscale is not None and servers.autoscale.priority_class_name is not None:
        servers = servers.model_copy(update={"priority_class_name": servers.autoscale.priority_class_name})
    return _set(
        replace(_with_servers(build, servers), gang=None),
        1,
        name=resource_names.borrowed_server(build.name, number),
        labels=resource_names.borrowed_labels(build.name, number),
        first_pod=number * servers.nodes_per_server,
    )


def _with_servers(build: Build, servers: ServersSpec) -> Build:
    spec = build.experiment.spec.model_copy(update={"servers": servers})
    return replace(build, experiment=build.experiment.model_copy(update={"spec": spec}))


def _set(
    build: Build,
    replicas: int,
    *,
    name: str,
    labels: dict[str, str],
    first_pod: int | None = None,
    seed_offset: int = 0,
) -> Manifest:
    servers = build.experiment.spec.servers
    group = None if build.gang is None else build.gang.servers
    server = _server(build, owner=name, seed_offset=seed_offset)
    containers = {"initContainers": _prefetch(build), "containers": [server]}
    template = pod_template(
        build,
        servers,
        labels=labels,
        containers=containers,
        group=group,
        run_volume=build.experiment.spec.storage.shared,
    )
    template["spec"]["volumes"] = [*template["spec"]["volumes"], *model_cache.volumes(build)]
    return owned(
        build,
        api_version="apps/v1",
        kind="StatefulSet",
        name=name,
        labels=labels,
        annotations={} if group is None else {MEMBERS: group},
        body={
            "spec": {
                "replicas": replicas * servers.nodes_per_server,
                **({} if first_pod is None else {"ordinals": {"start": first_pod}}),
                "serviceName": resource_names.servers(build.name),
                "podManagementPolicy": "Parallel",
                "updateStrategy": {"type": "OnDelete"},
                "selector": {"matchLabels": labels},
                "template": _spread(build, template),
            }
        },
    )


def disruption_budget(build: Build) -> tuple[Manifest, ...]:
    """Voluntary disruptions evict one ready server at a time. A single pod needs no budget: it would never be spared.

    Servers that are not ready may always be evicted: otherwise one that loads for an hour would block a drain.
    """
    if sum(group.servers.pods for group in build.experiment.spec.servers.groups) <= 1:
        return ()
    labels = resource_names.component_labels(build.name, resource_names.SERVER)
    budget = owned(
        build,
        api_version="policy/v1",
        kind="PodDisruptionBudget",
        name=resource_names.servers(build.name),
        labels=labels,
        body={
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": labels},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            }
        },
    )
    return (budget,)


def _server(build: Build, *, owner: str, seed_offset: int) -> Manifest:
    servers = build.experiment.spec.servers
    index = f"$({names.SERVER_INDEX})"
    command = server_command(
        build.experiment,
        index,
        host="0.0.0.0",
        port=resource_names.SERVER_PORT,
        config_file=Path(CONFIG_FILE),
        api_key_file=Path(API_KEY_FILE),
        threads=compute_threads(servers, servers.processes_per_pod),
        python=PYTHON,
        leaders=resource_names.server_host(build.name, build.namespace, "{}", owner=owner),
        group_port=resource_names.SERVER_GROUP_PORT,
        seed_offset=seed_offset,
    )
    ordinal = {"fieldRef": {"fieldPath": f"metadata.labels['{resource_names.POD_INDEX}']"}}
    result = container(
        servers,
        name="server",
        image=build.image("server"),
        command=command.argv,
        env=environment(
            build,
            servers,
            {"HF_HOME": HUB_CACHE, **model_cache.environment(build), **command.env},
            [
                {"name": names.SERVER_INDEX, "valueFrom": ordinal},
                {"name": names.POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
        ),
        amounts=resources(servers, gpus=servers.processes_per_pod, gib_per_gpu=MEMORY_PER_GPU_GIB),
    )
    result["command"] = [index if word == f"${index}" else word for word in result["command"]]
    return {
        **result,
        "volumeMounts": [
            *mounts(build, servers, run_volume="read-only" if build.experiment.spec.storage.shared else None),
            *model_cache.mounts(build, read_only=True),
        ],
        "ports": [{"name": "http", "containerPort": resource_names.SERVER_PORT, "protocol": "TCP"}],
        **_probes(servers.startup_seconds, TimeLimits.of(build.experiment.spec.config.rollout, servers.device)),
    }


def _prefetch(build: Build) -> list[Manifest]:
    """Downloads the model into the shared cache; no container without one. It gets the server's CPU and memory."""
    servers, command = build.experiment.spec.servers, model_cache.command(build)
    if command is None:
        return []
    result = container(
        servers,
        name="models",
        image=build.image("server"),
        command=[PYTHON, *command],
        env=environment(build, servers, {"HF_HOME": HUB_CACHE}, []),
        amounts=without_devices(resources(servers, gpus=servers.processes_per_pod, gib_per_gpu=MEMORY_PER_GPU_GIB)),
    )
    mounted = [*mounts(build, servers, run_volume=None), *model_cache.mounts(build, read_only=False)]
    return [{**result, "volumeMounts": mounted}]


def _probes(startup_s: int, limits: TimeLimits) -> dict[str, Any]:
    """/ready answers at once. /health generates a token: it proves that the scheduler works, and waits for updates."""

    def get(path: str, *, period: int, timeout: int, failures: int) -> Manifest:
        return {
            "httpGet": {"path": path, "port": "http"},
            "periodSeconds": period,
            "timeoutSeconds": timeout,
            "failureThreshold": failures,
        }

    return {
        "startupProbe": get("/ready", period=5, timeout=5, failures=max(1, startup_s // 5)),
        "readinessProbe": get("/ready", period=5, timeout=5, failures=3),
        "livenessProbe": get(
            "/health", period=HEALTH_PERIOD_S, timeout=HEALTH_TIMEOUT_S, failures=limits.health_failures
        ),
    }


def _spread(build: Build, template: Manifest) -> Manifest:
    """Spread servers on CPUs over nodes if there is room; on cuda they are packed. The user's constraints win."""
    servers = build.experiment.spec.servers
    spec: Manifest = {**template["spec"], "terminationGracePeriodSeconds": servers.termination_grace_period_seconds}
    if not servers.topology_spread_constraints:
        # The scheduler spreads the pods of a StatefulSet unless they have a constraint: on cuda it counts no pod.
        packed = {NO_POD: ""}
        spread = resource_names.component_labels(build.name, resource_names.SERVER)
        spec["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": packed if servers.device == "cuda" else spread},
            }
        ]
    return {**template, "spec": spec}
