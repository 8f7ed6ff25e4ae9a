"""Pod groups, in the API of the scheduler that places the pods: all pods of a group start together or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from areal_api import resource_names
from areal_operator.manifests.base import Build, Gang, Manifest, owned
from areal_operator.settings import GANG_APIS

KUBERNETES, COSCHEDULING, VOLCANO, KAI = GANG_APIS
# Several groups have a kind of this name. As for kubectl, kind.group tells them apart.
KIND = "PodGroup"
PLURAL = "podgroups"
KAI_QUEUE, VOLCANO_QUEUE = "kai.scheduler/queue", "volcano.sh/queue-name"  # labels of an experiment


@dataclass(frozen=True)
class GroupApi:
    """The API of one kind of scheduler."""

    name: str
    api_version: str

    @property
    def kind(self) -> str:
        """``kind.group``."""
        return f"{KIND}.{self.api_version.partition('/')[0]}"


APIS = {
    KUBERNETES: GroupApi(KUBERNETES, "scheduling.k8s.io/v1alpha2"),
    COSCHEDULING: GroupApi(COSCHEDULING, "scheduling.x-k8s.io/v1alpha1"),
    VOLCANO: GroupApi(VOLCANO, "scheduling.volcano.sh/v1beta1"),
    KAI: GroupApi(KAI, "scheduling.run.ai/v2alpha2"),
}
KINDS: dict[str, tuple[str, str]] = {api.kind: (api.api_version, PLURAL) for api in APIS.values()}


@dataclass(frozen=True)
class Membership:
    """What makes a pod a member of a group."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Mapping[str, Any]


NO_MEMBER = Membership({}, {}, {})


def manifests(build: Build) -> tuple[Manifest, ...]:
    """The groups of a run."""
    gang = build.gang
    if gang is None:
        return ()
    return tuple(_pod_group(build, gang, name, count) for name, count in gang.groups.items())


def _pod_group(build: Build, gang: Gang, name: str, count: int) -> Manifest:
    """A group of which ``count`` pods start together."""
    api = APIS[gang.api]
    queue = _queue(build, gang)
    labels = {**resource_names.labels(build.name), **({KAI_QUEUE: queue} if queue and gang.api == KAI else {})}
    return owned(
        build,
        api_version=api.api_version,
        kind=api.kind,
        name=name,
        labels=labels,
        body={"spec": _spec(build, gang, count, queue)},
    )


def membership(build: Build, gang: Gang | None, name: str | None) -> Membership:
    """What a pod needs to be a member of the group ``name``, if there is one."""
    if gang is None or name is None:
        return NO_MEMBER
    if gang.api == KUBERNETES:
        return Membership({}, {}, {"schedulingGroup": {"podGroupName": name}})
    if gang.api == COSCHEDULING:
        return Membership({"scheduling.x-k8s.io/pod-group": name}, {}, {})
    if gang.api == VOLCANO:
        return Membership({}, {"scheduling.k8s.io/group-name": name}, {})
    queue = _queue(build, gang)
    labels = {KAI_QUEUE: queue} if queue else {}
    # Without the second annotation KAI would make a group of each owner of pods.
    return Membership(labels, {"pod-group-name": name, "kai.scheduler/skip-podgrouper": "true"}, {})


def _spec(build: Build, gang: Gang, count: int, queue: str | None) -> Manifest:
    if gang.api == KUBERNETES:
        return {"schedulingPolicy": {"gang": {"minCount": count}}}
    spec: Manifest = {"minMember": count}
    if gang.api == COSCHEDULING:
        return spec
    trainer = build.experiment.spec.trainer.priority_class_name
    if trainer is not None and trainer == build.experiment.spec.servers.priority_class_name:
        spec["priorityClassName"] = trainer
    return {**spec, **({"queue": queue} if queue else {})}


def _queue(build: Build, gang: Gang) -> str | None:
    label = {VOLCANO: VOLCANO_QUEUE, KAI: KAI_QUEUE}.get(gang.api)
    return None if label is None else build.experiment.metadata.labels.get(label)
