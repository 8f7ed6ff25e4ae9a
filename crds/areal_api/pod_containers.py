"""Containers and device claims that an experiment may add to its pods, as in Kubernetes' core/v1."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from areal_api.pod_fields import EnvVar, ItemList, LabelKey, Name, Path, PodSection, Resources, Shape, VolumeMount
from areal_api.section import CamelSection

CONTAINER_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
OWN_CONTAINERS = ("server", "trainer", "prepare", "code")  # of the operator
ContainerName = Annotated[str, Field(min_length=1, max_length=63, pattern=CONTAINER_NAME)]
Word = Annotated[str, Field(max_length=16_384)]
Words = Annotated[list[Word], Field(max_length=256)]
UserID = Annotated[int, Field(ge=1, le=2**31 - 1)]
GroupID = Annotated[int, Field(ge=0, le=2**31 - 1)]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[int, Field(ge=0, le=86_400)]


class ContainerSecurity(PodSection):
    """What Pod Security "restricted" lets a container choose. Privileges and capabilities are always dropped."""

    run_as_user: UserID | None = None
    run_as_group: GroupID | None = None
    read_only_root_filesystem: bool | None = None


class ExecAction(PodSection):
    """A command in the container."""

    command: Words


class HTTPGetAction(PodSection):
    """A request that must be answered."""

    path: Path | None = None
    port: PortNumber
    scheme: Literal["HTTP", "HTTPS"] | None = None


class TCPSocketAction(PodSection):
    """A port that must accept connections."""

    port: PortNumber


class Probe(PodSection):
    """A probe of a container."""

    exec: Annotated[dict[str, Any], Shape(ExecAction)] | None = None
    http_get: Annotated[dict[str, Any], Shape(HTTPGetAction)] | None = None
    tcp_socket: Annotated[dict[str, Any], Shape(TCPSocketAction)] | None = None
    initial_delay_seconds: Seconds | None = None
    period_seconds: Seconds | None = None
    timeout_seconds: Seconds | None = None
    success_threshold: Annotated[int, Field(ge=1, le=1000)] | None = None
    failure_threshold: Annotated[int, Field(ge=1, le=100_000)] | None = None


class ExtraContainer(PodSection):
    """An init container, or with restartPolicy Always a sidecar that runs beside the others and ends after them."""

    name: ContainerName
    image: Annotated[str, Field(min_length=1, max_length=1024)]
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: Words | None = None
    args: Words | None = None
    working_dir: Path | None = None
    env: list[Annotated[dict[str, Any], Shape(EnvVar)]] | None = ItemList
    resources: Annotated[dict[str, Any], Shape(Resources)] | None = None
    volume_mounts: list[Annotated[dict[str, Any], Shape(VolumeMount)]] | None = ItemList
    security_context: Annotated[dict[str, Any], Shape(ContainerSecurity)] | None = None
    restart_policy: Literal["Always"] | None = None
    startup_probe: Annotated[dict[str, Any], Shape(Probe)] | None = None
    readiness_probe: Annotated[dict[str, Any], Shape(Probe)] | None = None
    liveness_probe: Annotated[dict[str, Any], Shape(Probe)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name in OWN_CONTAINERS:
            raise ValueError(f"name is {self.name}, a name that the operator reserves; choose another")
        probes = [key for key in ("startup_probe", "readiness_probe", "liveness_probe") if getattr(self, key)]
        if probes and self.restart_policy != "Always":
            raise ValueError(
                f"{to_camel(probes[0])} of {self.name} has no effect: an init container ends "
                "before others start; set restartPolicy: Always for a sidecar, or remove it"
            )
        return self


class PodResourceClaim(PodSection):
    """A claim of devices (dynamic resource allocation): of an existing ResourceClaim, or made from a template."""

    name: ContainerName
    resource_claim_name: Name | None = None
    resource_claim_template_name: Name | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.resource_claim_name is None) == (self.resource_claim_template_name is None):
            raise ValueError(f"{self.name} needs exactly one of resourceClaimName and resourceClaimTemplateName")
        return self


class Packing(CamelSection):
    """Keeps all servers and trainer pods of an experiment in one domain of nodes."""

    topology_key: LabelKey = Field(description="Label of nodes whose value is the domain, such as that of a rack.")
    required: bool = Field(
        False, description="Start only in one domain; false prefers it and starts elsewhere if it has no room."
    )
