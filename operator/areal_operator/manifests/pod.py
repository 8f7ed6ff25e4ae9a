"""The pod template of servers and trainer: Pod Security "restricted", mounts, devices, and the user's additions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from areal_api import names, resource_names
from areal_api.pods import PodBasics, PodSettings
from areal_api.quantities import parse_quantity
from areal_operator.manifests.base import Build, Manifest
from areal_operator.manifests.pod_groups import membership
from areal_operator.manifests.shared import API_KEY, CONFIG_KEY
from areal_operator.queueing import kueue

GPU = "nvidia.com/gpu"
# Extended resources with one of these in their name are no accelerators: a GPU is still added next to them.
NETWORK_DEVICES = ("rdma", "hca", "efa", "sriov", "roce", "infiniband", "hostdev", "hugepages", "gdrcopy")
CONFIG_FILE = f"/etc/areal/config/{CONFIG_KEY}"
API_KEY_FILE = f"/etc/areal/api-key/{API_KEY}"
TERMINATION_LOG = "/dev/termination-log"
NODE_GONE_S = 60  # how long a pod stays bound to an unreachable node; the default of Kubernetes is 300
MAX_CORES = 4096  # of one pod
OWN_PREFIX = "areal-"
NODE_WEIGHT = DOMAIN_WEIGHT = 100  # of preferences
CPUS_PER_GPU = 3  # requested by default; with the memory, small enough for the smallest nodes that have a GPU
Access = Literal["read-only", "read-write"]
_READ_ONLY: dict[Access, Manifest] = {"read-only": {"readOnly": True}, "read-write": {}}


def pod_template(
    build: Build,
    settings: PodSettings,
    *,
    labels: Manifest,
    containers: Manifest,
    group: str | None = None,
    run_volume: bool = True,
) -> Manifest:
    """A pod template. ``containers`` holds ``containers`` and optionally ``initContainers``; ``group`` is the name of
    the pod group, if any; ``run_volume``: whether containers mount the run's volume."""
    member = membership(build, build.gang, group)
    own = containers.get("initContainers", [])
    spec: Manifest = {
        **containers,
        "initContainers": [*own, *(_extra_container(one) for one in settings.init_containers)],
        "resourceClaims": settings.resource_claims,
        "serviceAccountName": _service_account(build, settings),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security_context(settings),
        "volumes": [*_volumes(build, settings, run_volume=run_volume), *_checked(settings.volumes)],
        "tolerations": [*node_tolerations(settings), *settings.tolerations],
        "affinity": _affinity(build, settings),
        "imagePullSecrets": settings.image_pull_secrets,
        "nodeSelector": settings.node_selector,
        "topologySpreadConstraints": settings.topology_spread_constraints,
        "priorityClassName": settings.priority_class_name,
        "runtimeClassName": settings.runtime_class_name,
        "schedulerName": settings.scheduler_name,
        "schedulingGates": scheduling_gates(settings),
        **_host_network(build, settings),
        **member.spec,
    }
    return {
        "metadata": {
            "labels": {**settings.pod_labels, **member.labels, **labels},
            "annotations": {**settings.pod_annotations, **member.annotations},
        },
        "spec": {key: value for key, value in spec.items() if value not in (None, {}, [])},
    }


def _service_account(build: Build, settings: PodSettings) -> str:
    """The run's own account, or the one in the spec. Raises ``ValueError`` for one that the cluster does not allow."""
    wanted, allowed = settings.service_account_name, build.settings.service_accounts
    if wanted is None:
        return resource_names.service_account(build.name)
    if not any(wanted == one or (one.endswith("*") and wanted.startswith(one[:-1])) for one in allowed):
        raise ValueError(
            f"serviceAccountName is {wanted}, which this cluster does not allow; use one of "
            f"{', '.join(allowed) or 'none'}, or let its administrator add it to the chart's admission.serviceAccounts"
        )
    return wanted


def _extra_container(given: Manifest) -> Manifest:
    """The user's init container or sidecar, with what Pod Security "restricted" demands and a writable /tmp."""
    fixed = unprivileged()
    chosen = {key: value for key, value in (given.get("securityContext") or {}).items() if value is not None}
    return {
        **{key: value for key, value in given.items() if value not in (None, {}, [])},
        **fixed,
        "securityContext": {**fixed["securityContext"], **chosen},
        "resources": given.get("resources") or {},
        "volumeMounts": [{"name": "areal-tmp", "mountPath": "/tmp"}, *(given.get("volumeMounts") or [])],
    }


def scheduling_gates(settings: PodBasics) -> list[Manifest]:
    """The gate that Kueue removes once it has chosen a node, for pods that it has a topology for."""
    return [{"name": kueue.TOPOLOGY_GATE}] if kueue.POD_SET_LABEL in settings.pod_labels else []


def container(
    settings: PodSettings, *, name: str, image: str, command: Sequence[str], env: Sequence[Manifest], amounts: Manifest
) -> Manifest:
    """A container without privileges and with a read-only root file system; writable paths are mounted."""
    added = ["IPC_LOCK"] if settings.fabric.ipc_lock else []
    result: Manifest = {
        "name": name,
        "image": image,
        "command": [argument.replace("$(", "$$(") for argument in command],
        "workingDir": str(names.IMAGE_ROOT),
        "env": list(env),
        "resources": amounts,
        **unprivileged(added),
    }
    if settings.image_pull_policy is not None:
        result["imagePullPolicy"] = settings.image_pull_policy
    return result


def unprivileged(capabilities: Sequence[str] = ()) -> Manifest:
    """The parts of a container that are the same in all pods: no privileges, and why it ended."""
    added = {"add": list(capabilities)} if capabilities else {}
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], **added},
        },
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def mounts(build: Build, settings: PodSettings, *, run_volume: Access | None) -> list[Manifest]:
    """Volume mounts: the operator's, then the user's. ``run_volume``: None for pods without it."""
    own: list[Manifest] = [
        {"name": "areal-config", "mountPath": "/etc/areal/config", "readOnly": True},
        {"name": "areal-api-key", "mountPath": "/etc/areal/api-key", "readOnly": True},
        {"name": "areal-shm", "mountPath": "/dev/shm"},
        {"name": "areal-tmp", "mountPath": "/tmp"},
    ]
    if run_volume is not None:
        own.insert(0, {"name": "areal-run", "mountPath": str(build.fileroot), **_READ_ONLY[run_volume]})
    return [*own, *settings.volume_mounts]


def environment(
    build: Build, settings: PodBasics, values: Mapping[str, str], more: Sequence[Manifest]
) -> list[Manifest]:
    """Environment variables, each name once; the user's come last and take precedence."""
    everywhere = {
        "HOME": "/tmp",
        "XDG_CACHE_HOME": "/tmp/.cache",
        names.TERMINATION_LOG: TERMINATION_LOG,
        **({names.LOG_FORMAT: "json"} if build.settings.json_logs else {}),
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
    """Compute threads of each of ``processes`` in a CPU pod: its whole cores divided by the processes."""
    limits, requests = limits_and_requests(settings)
    cpu = limits.get("cpu") or requests.get("cpu") or 1
    try:
        cores = int(parse_quantity(cpu))
    except ValueError as error:
        raise ValueError(f"resources: cpu is {cpu!r}; write cores, such as 4 or 500m") from error
    return max(1, min(cores, MAX_CORES) // processes)


def limits_and_requests(settings: PodSettings) -> tuple[Manifest, Manifest]:
    """Resource limits and requests; raises ``ValueError`` for values that are not mappings."""
    parts: list[Manifest] = []
    for part in ("limits", "requests"):
        value = settings.resources.get(part)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"resources.{part} is {value!r}; write a mapping, as {{cpu: 4, memory: 16Gi}}")
        parts.append(value or {})
    return parts[0], parts[1]


def resources(settings: PodSettings, *, gpus: int, gib_per_gpu: int) -> Manifest:
    """The user's resources. On cuda also requests of CPU and memory that are not listed, and ``gpus`` GPUs unless an
    accelerator is listed."""
    limits, requests = limits_and_requests(settings)
    if settings.device != "cuda":
        return settings.resources
    defaults = {"cpu": str(gpus * CPUS_PER_GPU), "memory": f"{gpus * gib_per_gpu}Gi"}
    requests = {**{name: amount for name, amount in defaults.items() if name not in limits}, **requests}
    result = {**settings.resources, "requests": requests}
    if settings.resources.get("claims") or any(is_accelerator(name) for name in {*limits, *requests}):
        return result
    return {**result, "limits": {**limits, GPU: str(gpus)}}


def without_devices(amounts: Manifest) -> Manifest:
    """The CPU, memory and storage of ``resources``, without extended resources: for a container without devices."""
    parts = {
        part: {name: value for name, value in listed.items() if "/" not in name}
        for part, listed in ((part, amounts.get(part) or {}) for part in ("limits", "requests"))
    }
    return {part: listed for part, listed in parts.items() if listed}


def is_accelerator(resource: str) -> bool:
    """Whether a resource is a device that computes (a GPU, a MIG slice, a TPU, …): extended, and no network device."""
    return "/" in resource and not any(word in resource.lower() for word in NETWORK_DEVICES)


def _host_network(build: Build, settings: PodSettings) -> Manifest:
    """The network of the node, if the experiment asks for it. Raises ``ValueError`` for what the cluster forbids."""
    for key, wanted in (("ipcLock", settings.fabric.ipc_lock), ("hostNetwork", settings.fabric.host_network)):
        if wanted and key not in build.settings.fabric:
            raise ValueError(
                f"fabric.{key} is true, which this cluster does not allow; remove it, or let its administrator set the "
                f"chart's fabric.{key}"
            )
    if not settings.fabric.host_network:
        return {}
    # Without this policy a pod in the node's network would not resolve names of Services.
    return {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}


def security_context(settings: PodBasics) -> Manifest:
    """The security context of a pod."""
    security = settings.pod_security
    values = {
        "runAsUser": security.run_as_user,
        "runAsGroup": security.run_as_group,
        "fsGroup": security.fs_group,
        "fsGroupChangePolicy": security.fs_group_change_policy if security.fs_group is not None else None,
        "supplementalGroups": security.supplemental_groups or None,
    }
    fixed: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    return {**fixed, **{key: value for key, value in values.items() if value is not None}}


def _volumes(build: Build, settings: PodSettings, *, run_volume: bool) -> list[Manifest]:
    claim = {"claimName": resource_names.volume_claim(build.name)}
    return [
        *([{"name": "areal-run", "persistentVolumeClaim": claim}] if run_volume else []),
        {"name": "areal-config", "secret": _only(build.secret, CONFIG_KEY)},
        {"name": "areal-api-key", "secret": {**_only(build.secret, API_KEY), "defaultMode": 0o440}},
        {"name": "areal-shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm_size}},
        {"name": "areal-tmp", "emptyDir": {}},
    ]


def _only(secret: str, key: str) -> Manifest:
    """The source of a volume with one file of a Secret."""
    return {"secretName": secret, "items": [{"key": key, "path": key}]}


def _checked(volumes: Sequence[Manifest]) -> Sequence[Manifest]:
    for volume in volumes:
        if str(volume.get("name", "")).startswith(OWN_PREFIX):
            raise ValueError(
                f"volumes: {volume['name']} begins with {OWN_PREFIX}, which is reserved; choose another name"
            )
    return volumes


def node_tolerations(settings: PodBasics) -> list[Manifest]:
    """A pod leaves an unreachable node after ``NODE_GONE_S``, unless the user tolerates that longer."""
    taints = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    tolerated = {str(toleration.get("key")) for toleration in settings.tolerations}
    return [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_GONE_S}
        for taint in taints
        if taint not in tolerated
    ]


def _affinity(build: Build, settings: PodSettings) -> Manifest:
    """The user's affinity, else: a volume that only one node can mount keeps all pods on one node, and on cuda the pods
    prefer nodes that the experiment uses already, so that others keep all of their GPUs free for a large pod. Packing
    adds the same for a larger domain."""
    if "podAffinity" in settings.affinity:
        return settings.affinity
    node, packing = _near(build, "kubernetes.io/hostname"), build.experiment.spec.packing
    several_nodes = "ReadWriteMany" in build.access_modes or not build.experiment.spec.storage.shared
    required: list[Manifest] = [] if several_nodes else [node]
    preferred: list[Manifest] = []
    if not required and settings.device == "cuda":
        preferred.append({"weight": NODE_WEIGHT, "podAffinityTerm": node})
    if packing is not None and packing.required:
        required.append(_near(build, packing.topology_key))
    elif packing is not None:
        preferred.append({"weight": DOMAIN_WEIGHT, "podAffinityTerm": _near(build, packing.topology_key)})
    rules = {
        "requiredDuringSchedulingIgnoredDuringExecution": required,
        "preferredDuringSchedulingIgnoredDuringExecution": preferred,
    }
    affinity = {key: terms for key, terms in rules.items() if terms}
    return {**settings.affinity, "podAffinity": affinity} if affinity else settings.affinity


def _near(build: Build, topology_key: str) -> Manifest:
    """In the domain of pods of the same experiment; the first pod may be anywhere."""
    return {"labelSelector": {"matchLabels": resource_names.labels(build.name)}, "topologyKey": topology_key}
