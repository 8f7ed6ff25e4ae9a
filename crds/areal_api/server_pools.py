"""``servers.pools``: further servers of a run, which differ from the others in device, size or nodes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from areal_api.autoscale import MAX_SERVERS
from areal_api.bounds import FreeForm
from areal_api.pod_containers import PodResourceClaim
from areal_api.pod_fields import (
    Affinity,
    EnvVar,
    LabelKey,
    LabelValue,
    Name,
    Resources,
    Shape,
    Toleration,
    TopologySpread,
)
from areal_api.pods import MAX_PROCESSES, Device
from areal_api.section import CamelSection

MAX_POOLS = 8
MAX_POOL_NAME_LENGTH = 24
MAX_POOL_NAMES_LENGTH = 46  # of experiment and pool: leaves room for the suffixes of StatefulSet labels


class ServerPool(CamelSection):
    """Servers with settings that differ from those of servers. A key replaces that of servers; null keeps it."""

    name: str = Field(
        min_length=1,
        max_length=MAX_POOL_NAME_LENGTH,
        pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$",
        description="Name: lower-case letters, digits and hyphens; with the experiment's name at most 46 characters.",
    )
    replicas: int = Field(1, ge=1, le=MAX_SERVERS, description="Number of servers of this pool.")
    device: Device | None = Field(None, description="cuda or cpu; null is that of servers.")
    tensor_parallel: int | None = Field(
        None, ge=1, le=MAX_PROCESSES, description="GPUs per server (on cpu: processes); null is as many as of servers."
    )
    nodes_per_server: int | None = Field(
        None, ge=1, le=MAX_PROCESSES, description="Pods of each server; null is that of servers."
    )
    args: FreeForm | None = Field(
        None, description="Additional SGLang arguments, which override config.sglang; null is those of servers."
    )
    env: list[Annotated[dict[str, Any], Shape(EnvVar)]] | None = Field(
        None, description="Environment variables, as in a pod; null is those of servers."
    )
    image: str | None = Field(None, max_length=1024, description="Container image; null is that of servers.")
    resources: Annotated[dict[str, Any], Shape(Resources)] | None = Field(
        None, description="Requests and limits per pod; null is those of servers."
    )
    resource_claims: list[Annotated[dict[str, Any], Shape(PodResourceClaim)]] | None = Field(
        None, max_length=16, description="Claims of devices, as in a pod; null is those of servers."
    )
    node_selector: dict[LabelKey, LabelValue] | None = Field(
        None, max_length=64, description="Labels that a node must have; null is those of servers."
    )
    tolerations: list[Annotated[dict[str, Any], Shape(Toleration)]] | None = Field(
        None, max_length=64, description="Node taints that the pods tolerate; null is those of servers."
    )
    affinity: Annotated[dict[str, Any], Shape(Affinity)] | None = Field(
        None, description="Affinity to nodes and pods; null is that of servers."
    )
    topology_spread_constraints: list[Annotated[dict[str, Any], Shape(TopologySpread)]] | None = Field(
        None, max_length=16, description="How pods are spread over nodes and zones; null is that of servers."
    )
    priority_class_name: Name | None = Field(None, description="Priority class; null is that of servers.")
    runtime_class_name: Name | None = Field(None, description="Runtime class; null is that of servers.")
    pod_labels: dict[LabelKey, LabelValue] | None = Field(
        None, max_length=64, description="Additional pod labels; null is those of servers."
    )
    pod_annotations: dict[LabelKey, str] | None = Field(
        None, max_length=64, description="Additional pod annotations; null is those of servers."
    )

    def changes(self) -> dict[str, Any]:
        """What the pool sets, by attribute of ``servers``."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "name"}
        return {name: value for name, value in values.items() if value is not None}
