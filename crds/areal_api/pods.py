"""What the custom resource says about the pods of one kind."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from areal_api.section import CamelSection

Device = Literal["cuda", "cpu"]


class PodSettings(CamelSection):
    """Pods of one kind. ``device`` and ``env`` hold everywhere, the rest where the pods run in Kubernetes."""

    device: Device = Field("cuda", description="cuda (a GPU a process) or cpu; it is never guessed.")
    env: list[dict[str, Any]] = Field(
        default_factory=list, description="Environment variables, as in a pod: name and value, or name and valueFrom."
    )
    image: str | None = Field(None, description="Container image; null is the operator's own.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="When the image is pulled; null is Kubernetes' choice."
    )
    image_pull_secrets: list[dict[str, Any]] = Field(
        default_factory=list, description="Secrets of the image's registry: a list of {name: …}."
    )
    resources: dict[str, Any] = Field(
        default_factory=dict,
        description="Requests and limits of a pod; the GPUs that device: cuda needs are added unless they are named.",
    )
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that a node must have.")
    tolerations: list[dict[str, Any]] = Field(default_factory=list, description="Taints of nodes that are accepted.")
    affinity: dict[str, Any] = Field(default_factory=dict, description="Affinity to nodes and pods.")
    topology_spread_constraints: list[dict[str, Any]] = Field(
        default_factory=list, description="How the pods spread over nodes and zones."
    )
    priority_class_name: str | None = Field(None, description="Priority class; null is the cluster's default.")
    runtime_class_name: str | None = Field(None, description="Runtime class; null is the cluster's default.")
    scheduler_name: str | None = Field(None, description="Scheduler; null is the cluster's default.")
    pod_labels: dict[str, str] = Field(default_factory=dict, description="More labels of the pods.")
    pod_annotations: dict[str, str] = Field(default_factory=dict, description="More annotations of the pods.")
    volumes: list[dict[str, Any]] = Field(default_factory=list, description="More volumes of a pod.")
    volume_mounts: list[dict[str, Any]] = Field(default_factory=list, description="Where the volumes are mounted.")
    shm_size: str = Field(
        "8Gi",
        pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$",
        description="Size of /dev/shm; it counts against the memory limit.",
    )
