"""Pod settings of the custom resource, used by both servers and trainer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from areal_api.pod_containers import ExtraContainer, PodResourceClaim
from areal_api.pod_fields import (
    Affinity,
    EnvVar,
    LabelKey,
    LabelValue,
    Name,
    Reference,
    Resources,
    Shape,
    Toleration,
    TopologySpread,
    VolumeMount,
)
from areal_api.pod_volumes import Volume
from areal_api.quantities import Size
from areal_api.section import CamelSection

Device = Literal["cuda", "cpu"]
MAX_CONTAINERS = 8
MAX_PODS = 1024  # of one component
MAX_PROCESSES = 64  # of one pod


class PodSecurity(CamelSection):
    """User and groups of a pod. null leaves a field out, so that admission (for example OpenShift) chooses."""

    run_as_user: int | None = Field(1000, ge=1, le=2**31 - 1, description="User ID of all containers.")
    run_as_group: int | None = Field(1000, ge=0, le=2**31 - 1, description="Primary group ID of all containers.")
    fs_group: int | None = Field(1000, ge=0, le=2**31 - 1, description="Group ID that owns the volumes' files.")
    fs_group_change_policy: Literal["Always", "OnRootMismatch"] | None = Field(
        "OnRootMismatch", description="When the kubelet changes the group of a volume's files."
    )
    supplemental_groups: list[int] = Field(
        default_factory=list, max_length=32, description="Further group IDs of all containers."
    )


class Fabric(CamelSection):
    """What a pod needs beyond Pod Security "restricted" to use InfiniBand or RoCE. The cluster must allow it: see the
    chart's fabric values. RDMA devices are listed in resources, Multus networks in podAnnotations, variables of NCCL in
    env.
    """

    ipc_lock: bool = Field(
        False, description="Add the capability IPC_LOCK, for memory that the network adapter reads and writes."
    )
    host_network: bool = Field(
        False, description="Use the network of the node; one pod of a component per node, outside network policies."
    )


class PodBasics(CamelSection):
    """What every pod of an experiment may set. ``env`` always applies, the rest only in Kubernetes."""

    env: list[Annotated[dict[str, Any], Shape(EnvVar)]] = Field(
        default_factory=list, description="Environment variables, as in a pod: name and value, or name and valueFrom."
    )
    image: str | None = Field(None, max_length=1024, description="Container image; null is the operator's default.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="Image pull policy; null is the default of Kubernetes."
    )
    image_pull_secrets: list[Annotated[dict[str, Any], Shape(Reference)]] = Field(
        default_factory=list, max_length=16, description="Secrets with registry credentials: a list of {name: …}."
    )
    pod_security: PodSecurity = Field(default_factory=PodSecurity, description="User and groups of the pods.")
    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=64, description="Labels that a node must have."
    )
    tolerations: list[Annotated[dict[str, Any], Shape(Toleration)]] = Field(
        default_factory=list, max_length=64, description="Node taints that the pods tolerate."
    )
    priority_class_name: Name | None = Field(None, description="Priority class; null is the cluster's default.")
    runtime_class_name: Name | None = Field(None, description="Runtime class; null is the cluster's default.")
    pod_labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=64, description="Additional pod labels."
    )
    pod_annotations: dict[LabelKey, str] = Field(
        default_factory=dict, max_length=64, description="Additional pod annotations."
    )


class PodSettings(PodBasics):
    """Pods of one component. ``device`` and ``env`` always apply, the rest only in Kubernetes."""

    device: Device = Field("cuda", description="cuda (one GPU per process) or cpu; never detected automatically.")
    resources: Annotated[dict[str, Any], Shape(Resources)] = Field(
        default_factory=dict,
        description="Requests and limits per pod. On cuda the required GPUs, and per GPU requests of 3 CPUs and 12Gi "
        "(servers) or 24Gi (trainer) of memory, are added unless listed here.",
    )
    affinity: Annotated[dict[str, Any], Shape(Affinity)] = Field(
        default_factory=dict, description="Affinity to nodes and pods."
    )
    topology_spread_constraints: list[Annotated[dict[str, Any], Shape(TopologySpread)]] = Field(
        default_factory=list, max_length=16, description="How pods are spread over nodes and zones."
    )
    scheduler_name: Name | None = Field(None, description="Scheduler; null is the cluster's default.")
    volumes: list[Annotated[dict[str, Any], Shape(Volume)]] = Field(
        default_factory=list, max_length=64, description="Additional volumes."
    )
    volume_mounts: list[Annotated[dict[str, Any], Shape(VolumeMount)]] = Field(
        default_factory=list, max_length=64, description="Mounts of the additional volumes."
    )
    init_containers: list[Annotated[dict[str, Any], Shape(ExtraContainer)]] = Field(
        default_factory=list,
        max_length=MAX_CONTAINERS,
        description="Init containers, as in a pod, which run after the operator's own; with restartPolicy Always they "
        "are sidecars that start before the others and end after them.",
    )
    resource_claims: list[Annotated[dict[str, Any], Shape(PodResourceClaim)]] = Field(
        default_factory=list,
        max_length=16,
        description="Claims of devices (dynamic resource allocation), as in a pod; the containers list them by name in "
        "resources.claims.",
    )
    service_account_name: Name | None = Field(
        None,
        description="Service account of the pods, for example for access to a cloud's storage; it must exist, and the "
        "chart's admission.serviceAccounts must allow it. null is one without rights, made for the run.",
    )
    fabric: Fabric = Field(default_factory=Fabric, description="Access to InfiniBand or RoCE.")
    shm_size: Size = Field("8Gi", description="Size of /dev/shm; it counts towards the memory limit.")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [str(one["name"]) for one in self.init_containers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"initContainers has several entries with the name {twice[0]}; give each its own")
        claim = unknown_claim(self)
        if claim is not None:
            raise ValueError(claim)
        return self


def unknown_claim(pods: PodSettings) -> str | None:
    """A claim that a container uses and ``resourceClaims`` lacks, as a sentence."""
    known = [str(claim["name"]) for claim in pods.resource_claims]
    for resources in (pods.resources, *(one.get("resources") or {} for one in pods.init_containers)):
        missing = sorted({str(one["name"]) for one in resources.get("claims") or ()} - set(known))
        if missing:
            return (
                f"resources.claims names {missing[0]}, which resourceClaims lacks ({', '.join(known) or 'empty'}); "
                "add it there, with a resourceClaimTemplateName"
            )
    return None
