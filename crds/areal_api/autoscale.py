"""``servers.autoscale``: a number of servers that follows what the trainer and the servers wait for."""

from __future__ import annotations

from typing import Protocol

from pydantic import Field

from areal_api.pod_fields import Name
from areal_api.section import CamelSection

MAX_SERVERS = 1024


class AutoscaleSpec(CamelSection):
    """Bounds of the number of servers, between which the operator chooses."""

    min: int = Field(
        ge=1, le=MAX_SERVERS, description="Servers that the run always has. They start together with the trainer."
    )
    max: int = Field(
        ge=1,
        le=MAX_SERVERS,
        description="Most servers. Those above min are borrowed: the run starts without them and survives their loss.",
    )
    priority_class_name: Name | None = Field(
        None,
        description="PriorityClass of the borrowed servers, for example a low one, so that they give way to others; "
        "null is servers.priorityClassName. In a queue of Kueue it is also that of their Workloads.",
    )


class _Servers(Protocol):
    """The section that contains this one."""

    @property
    def replicas(self) -> int: ...

    @property
    def max_replicas(self) -> int | None: ...

    @property
    def min_replicas(self) -> int | None: ...

    @property
    def autoscale(self) -> AutoscaleSpec | None: ...


def autoscale_problems(servers: _Servers) -> list[str]:
    """What contradicts ``servers.autoscale``. ``generate/cel_rules.py`` repeats these rules for the API server."""
    scale = servers.autoscale
    if scale is None:
        return []
    problems: list[str] = []
    if scale.min > scale.max:
        problems.append(f"servers.autoscale.min is {scale.min}, above servers.autoscale.max {scale.max}; lower min")
    elif not scale.min <= servers.replicas <= scale.max:
        problems.append(
            f"servers.replicas is {servers.replicas}, which is not within servers.autoscale, {scale.min} to "
            f"{scale.max}; set it to the number to start with"
        )
    for key, value, bound in (
        ("maxReplicas", servers.max_replicas, "max"),
        ("minReplicas", servers.min_replicas, "min"),
    ):
        if value is not None:
            problems.append(
                f"servers.{key} is {value}, and servers.autoscale.{bound} {getattr(scale, bound)}; remove {key}"
            )
    return problems
