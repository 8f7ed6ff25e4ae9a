"""Pods of agents and tools, which the operator starts beside a run in a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from areal_api.code import CodeSpec
from areal_api.pod_fields import NetworkPeer, Resources, Shape
from areal_api.pods import PodBasics
from areal_api.section import CamelSection

MAX_AGENTS = 16  # of an experiment
MAX_REPLICAS = 256
MAX_NAME_LENGTH = 24
MAX_NAMES_LENGTH = 45  # of experiment and agent: leaves room for the suffixes of StatefulSet labels
MAX_SECONDS = 3600
Words = Annotated[list[str], Field(max_length=256)]


class AgentPod(PodBasics):
    """Pods that run a program of the user without volumes and without access to Kubernetes."""

    name: str = Field(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$",
        description="Name: lower-case letters, digits and hyphens; with the experiment's name at most 45 characters.",
    )
    image: str | None = Field(
        None, min_length=1, max_length=1024, description="Container image; null is the trainer's."
    )
    command: Words = Field(default_factory=list, description="Command, as in a pod; empty is the image's entry point.")
    args: Words = Field(default_factory=list, description="Arguments, as in a pod; empty are the image's.")
    code: bool = Field(
        False,
        description="Whether the pods get spec.code: an init container with the trainer's image prepares it, and it is "
        "first on PYTHONPATH. What must be fetched or installed needs externalNetwork.",
    )
    replicas: int = Field(1, ge=0, le=MAX_REPLICAS, description="Number of pods; may be changed during the run.")
    resources: Annotated[dict[str, Any], Shape(Resources)] = Field(
        default={"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        description="Requests and limits per pod.",
    )
    termination_grace_period_seconds: int = Field(
        10,
        ge=1,
        le=MAX_SECONDS,
        description="How long a pod may take to end, before it is killed.",
        json_schema_extra={"unit": "s"},
    )


class AgentSpec(AgentPod):
    """Pods of one agent of online mode. They reach only the gateway, tools and DNS."""

    external_network: bool = Field(
        False, description="Whether the pods also reach what the chart's networkPolicy.egressTo allows."
    )


class ToolSpec(AgentPod):
    """Pods of one tool server, which only agents and the trainer reach, and which reach nothing, not even DNS."""

    port: int = Field(8000, ge=1024, le=65535, description="Port that the tool server listens on.")


class GatewaySpec(CamelSection):
    """Access to the session gateway of online mode in a cluster."""

    allow_from: list[Annotated[dict[str, Any], Shape(NetworkPeer)]] = Field(
        default_factory=list,
        max_length=16,
        description="Who may connect to the gateway besides spec.agents, as peers of a NetworkPolicy: podSelector, "
        "namespaceSelector or ipBlock.",
    )


def code_problems(key: str, pods: Sequence[AgentPod], code: CodeSpec) -> list[str]:
    """Why pods of ``key`` (``agents`` or ``tools``) cannot have ``spec.code``; ``generate/cel_rules.py`` has the same
    rules."""
    return [
        f"{key}[{index}].code is true for {pod.name}, {problem}"
        for index, pod in enumerate(pods)
        if pod.code and (problem := _code_problem(pod, code)) is not None
    ]


def _code_problem(pod: AgentPod, code: CodeSpec) -> str | None:
    if not code.is_used:
        return "but spec.code is empty; set code.directory or code.git, or code: false"
    if not pod.command:
        return "whose command is empty: the code is added to the PYTHONPATH of a command; set command"
    if pod.image is not None and code.needs_packages:
        return (
            "which has an image: code.requirements are installed for the trainer's Python; leave image out, or install "
            "them in the image"
        )
    if code.needs_network and not (isinstance(pod, AgentSpec) and pod.external_network):
        fix = "set externalNetwork: true, or use" if isinstance(pod, AgentSpec) else "use"
        return (
            "but its pods reach no network that code.git, code.requirements and the bucket of a large directory need; "
            f"{fix} a directory of at most 700 KiB compressed without requirements"
        )
    return None
