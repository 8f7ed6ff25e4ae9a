"""Which pods of a run start together or not at all, without Kueue. Pure.

Servers and trainer form one group while a run starts. Only pods that can complete a group join it: the policy of a
group of Kubernetes is immutable, and a pod of an incomplete group would never be scheduled. Once there are fewer
servers than the group began with, or if the servers run without a group, later servers start on their own, and a
trainer of several nodes is a separate group.
"""

from __future__ import annotations

from areal_api import resource_names
from areal_api.experiment import ExperimentSpec
from areal_operator.manifests import pod_groups
from areal_operator.manifests.base import Build, Gang
from areal_operator.manifests.servers import MEMBERS
from areal_operator.observed import Object, Observed, annotation
from areal_operator.settings import DEFAULT_SCHEDULER


class MissingApiError(ValueError):
    """The cluster lacks an API at present: what a user wrote may become valid without a change."""


def gang_of(build: Build, observed: Observed) -> Gang | None:
    """The groups of a run; None if its scheduler knows none.

    Raises ``ValueError`` for schedulers that cannot start a run as a whole, ``MissingApiError`` for a missing API.
    """
    spec = build.experiment.spec
    name = _api_name(spec, dict(build.settings.gang_schedulers))
    if name is None:
        return None
    api = pod_groups.APIS[name]
    others = spec.trainer.nodes + sum(one.servers.pods for one in spec.servers.groups if one.pool is not None)
    group, count = resource_names.pod_group(build.name), spec.servers.pods + others
    existing = observed.get(api.kind, group)
    started = observed.get("StatefulSet", resource_names.servers(build.name))
    refused = observed.refused.get(api.kind)
    if refused is not None and existing is None:
        if name == pod_groups.KUBERNETES or started is not None:
            return None  # a cluster without gang scheduling, or with another version of its API
        scheduler = spec.trainer.scheduler_name or DEFAULT_SCHEDULER
        raise MissingApiError(
            f"trainer.schedulerName is {scheduler}, and PodGroups of {api.api_version} cannot be read ({refused}); "
            "install that scheduler with its resource definitions, or remove schedulerName"
        )
    least = spec.servers.min_pods + others
    needed = least if existing is None else _count(existing, default=least)
    if (started is None or annotation(started, MEMBERS) is not None) and count >= needed:
        return Gang(name, servers=group, trainer=group, groups={group: needed})
    if spec.trainer.nodes == 1:
        return Gang(name)
    own = resource_names.trainer_job(build.name, build.attempt)
    return Gang(name, trainer=own, groups={own: spec.trainer.nodes})


def _api_name(spec: ExperimentSpec, schedulers: dict[str, str]) -> str | None:
    servers, trainer = (one.scheduler_name or DEFAULT_SCHEDULER for one in (spec.servers, spec.trainer))
    if servers == trainer:
        return schedulers.get(trainer)
    named = {"servers": servers, "trainer": trainer}
    for section, scheduler in named.items():
        if schedulers.get(scheduler) not in (None, pod_groups.KUBERNETES):
            other = "trainer" if section == "servers" else "servers"
            raise ValueError(
                f"{section}.schedulerName is {scheduler}, which starts groups of pods, and {other}.schedulerName "
                f"{named[other]}; set both to {scheduler}, so that servers and trainer start together"
            )
    return None


def _count(group: Object, *, default: int) -> int:
    """The number of pods that an existing group of Kubernetes waits for; others may be changed."""
    policy = ((group.get("spec") or {}).get("schedulingPolicy") or {}).get("gang") or {}
    return int(policy.get("minCount", default))
