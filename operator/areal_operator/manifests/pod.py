"""The pod that servers and trainer have in common: Pod Security "restricted", mounts, devices, what the user adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from areal_api import names, resource_names
from areal_api.pods import PodSettings
from areal_operator.manifests.base import Build, Manifest
from areal_operator.manifests.shared import API_KEY, CONFIG_KEY

USER = 1000
GPU = "nvidia.com/gpu"
CONFIG_FILE = f"/etc/areal/config/{CONFIG_KEY}"
API_KEY_FILE = f"/etc/areal/api-key/{API_KEY}"
TERMINATION_LOG = "/dev/termination-log"
NODE_GONE_S = 60  # how long a pod stays bound to a node that no longer answers; Kubernetes' own is 300
OWN_PREFIX = "areal-"
GPU_ENV = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}  # both need memory that a container does not get


def pod_template(build: Build, settings: PodSettings, *, labels: Manifest, containers: Manifest) -> Manifest:
    """A pod template. ``containers`` holds ``containers`` and, where there are any, ``initContainers``."""
    spec: Manifest = {
        **containers,
        "serviceAccountName": resource_names.service_account(build.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [*_volumes(build, settings), *_named(settings.volumes, "volumes")],
        "tolerations": [*_node_tolerations(settings), *settings.tolerations],
        "affinity": _affinity(build, settings),
        "imagePullSecrets": settings.image_pull_secrets,
        "nodeSelector": settings.node_selector,
        "topologySpreadConstraints": settings.topology_spread_constraints,
        "priorityClassName": settings.priority_class_name,
        "runtimeClassName": settings.runtime_class_name,
        "schedulerName": settings.scheduler_name,
    }
    return {
        "metadata": {
            "labels": {**settings.pod_labels, **labels},
            "annotations": settings.pod_annotations,
        },
        "spec": {key: value for key, value in spec.items() if value not in (None, {}, [])},
    }


def container(
    settings: PodSettings, *, name: str, image: str, command: Sequence[str], env: Sequence[Manifest], gpus: int
) -> Manifest:
    """The main container: no privilege, a root file system that it cannot write, everything else mounted."""
    result: Manifest = {
        "name": name,
        "image": image,
        "command": [argument.replace("$(", "$$(") for argument in command],
        "workingDir": str(names.IMAGE_ROOT),
        "env": list(env),
        "resources": _resources(settings, gpus),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if settings.image_pull_policy is not None:
        result["imagePullPolicy"] = settings.image_pull_policy
    return result


def mounts(build: Build, settings: PodSettings) -> list[Manifest]:
    """Where volumes are mounted: ours, then the user's."""
    own: list[Manifest] = [
        {"name": "areal-run", "mountPath": str(build.fileroot)},
        {"name": "areal-config", "mountPath": "/etc/areal/config", "readOnly": True},
        {"name": "areal-api-key", "mountPath": "/etc/areal/api-key", "readOnly": True},
        {"name": "areal-shm", "mountPath": "/dev/shm"},
        {"name": "areal-tmp", "mountPath": "/tmp"},
    ]
    return [*own, *settings.volume_mounts]


def environment(
    build: Build, settings: PodSettings, values: Mapping[str, str], more: Sequence[Manifest]
) -> list[Manifest]:
    """Variables in an order in which each name stands once; the user's come last and win."""
    everywhere = {
        "HOME": "/tmp",
        "XDG_CACHE_HOME": "/tmp/.cache",
        "HF_HOME": str(build.fileroot / ".huggingface"),  # on the shared volume: a model is loaded down once
        names.TERMINATION_LOG: TERMINATION_LOG,
        **({names.LOG_FORMAT: "json"} if build.settings.json_logs else {}),
        **(GPU_ENV if settings.device == "cuda" else {}),
    }
    entries: dict[str, Manifest] = {
        key: {"name": key, "value": value.replace("$(", "$$(")} for key, value in {**everywhere, **values}.items()
    }
    entries |= {entry["name"]: entry for entry in more}
    for entry in settings.env:
        if not isinstance(entry.get("name"), str):
            raise ValueError(f"env: {entry} has no name; write {{name: …, value: …}}")
        entries.pop(entry["name"], None)
        entries[entry["name"]] = entry
    return list(entries.values())


def compute_threads(settings: PodSettings, processes: int) -> int:
    """Threads of each of ``processes`` in a pod on the CPU: the whole cores that the pod may use, shared out."""
    limits, requests = amounts(settings)
    cpu = limits.get("cpu") or requests.get("cpu") or 1
    text = str(cpu)
    try:
        cores = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError as error:
        raise ValueError(f"resources: cpu is {cpu!r}; write cores, as 4 or 500m") from error
    return max(1, int(cores) // processes)


def amounts(settings: PodSettings) -> tuple[Manifest, Manifest]:
    """Limits and requests; raises ``ValueError`` for what is no mapping."""
    found: list[Manifest] = []
    for part in ("limits", "requests"):
        value = settings.resources.get(part)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"resources.{part} is {value!r}; write a mapping, as {{cpu: 4, memory: 16Gi}}")
        found.append(value or {})
    return found[0], found[1]


def _resources(settings: PodSettings, gpus: int) -> Manifest:
    limits, requests = amounts(settings)
    if settings.device != "cuda" or gpus == 0 or any("gpu" in name for name in {*limits, *requests}):
        return settings.resources
    return {**settings.resources, "limits": {**limits, GPU: str(gpus)}}


def _volumes(build: Build, settings: PodSettings) -> list[Manifest]:
    return [
        {"name": "areal-run", "persistentVolumeClaim": {"claimName": resource_names.volume_claim(build.name)}},
        {"name": "areal-config", "configMap": {"name": build.config_map}},
        {
            "name": "areal-api-key",
            "secret": {"secretName": resource_names.api_key_secret(build.name), "defaultMode": 0o440},
        },
        {"name": "areal-shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm_size}},
        {"name": "areal-tmp", "emptyDir": {}},
    ]


def _named(volumes: Sequence[Manifest], key: str) -> Sequence[Manifest]:
    for volume in volumes:
        if str(volume.get("name", "")).startswith(OWN_PREFIX):
            raise ValueError(f"{key}: {volume['name']} begins with {OWN_PREFIX}, as our own do; choose another name")
    return volumes


def _node_tolerations(settings: PodSettings) -> list[Manifest]:
    taints = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    asked = {toleration.get("key") for toleration in settings.tolerations}
    return [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_GONE_S}
        for taint in taints
        if taint not in asked
    ]


def _affinity(build: Build, settings: PodSettings) -> Manifest:
    """The user's; where the volume can be mounted by one node alone, also: all pods on that node."""
    if "ReadWriteMany" in build.experiment.spec.storage.access_modes or "podAffinity" in settings.affinity:
        return settings.affinity
    term = {
        "labelSelector": {"matchLabels": resource_names.labels(build.name)},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {**settings.affinity, "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
