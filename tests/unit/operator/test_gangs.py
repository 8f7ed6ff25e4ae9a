"""Which pods of a run start together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from areal_operator.gangs import MEMBERS, MissingApiError, gang_of
from areal_operator.manifests import pod_groups
from areal_operator.manifests.base import Build, Gang, Manifest
from areal_operator.observed import Object, Observed
from support.operator_objects import (
    RUNNING,
    SETTINGS,
    UID,
    continued,
    decide,
    experiment,
    manifest,
    named,
    server_set,
    started,
    state,
)

GANGS = replace(
    SETTINGS,
    gang_schedulers=(
        ("default-scheduler", "kubernetes"),
        ("scheduler-plugins-scheduler", "coscheduling"),
        ("volcano", "volcano"),
        ("kai-scheduler", "kai"),
    ),
)
KUBERNETES = pod_groups.APIS[pod_groups.KUBERNETES].kind
NAMES = {api: name for name, api in GANGS.gang_schedulers}


def build(attempt: int = 1, **changes: Any) -> Build:
    return Build(experiment(**changes), "ns", UID, attempt, "key", "key", GANGS)


def group(count: int) -> Object:
    policy = {"gang": {"minCount": count}}
    return {"kind": KUBERNETES, "metadata": {"name": "case-run"}, "spec": {"schedulingPolicy": policy}}


def servers_in_group() -> Object:
    bare = server_set()
    return {**bare, "metadata": {**bare["metadata"], "annotations": {MEMBERS: "case-run"}}}


def observed(*objects: Object, refused: dict[str, str] | None = None) -> Observed:
    return Observed({obj["kind"]: [obj] for obj in objects}, refused=refused or {})


def scheduled_by(name: str) -> dict[str, Any]:
    return {"servers__schedulerName": name, "trainer__schedulerName": name}


def pods(plan_objects: tuple[Manifest, ...]) -> list[Manifest]:
    return [one["spec"]["template"] for one in plan_objects if one["kind"] in ("StatefulSet", "Job")]


def test_servers_and_trainer_start_as_one_group() -> None:
    gang = gang_of(build(servers__replicas=3, trainer__nodes=2, config__train_dataset__batch_size=2), observed())
    assert gang == Gang("kubernetes", servers="case-run", trainer="case-run", groups={"case-run": 5})


def test_a_minimum_of_servers_is_enough_to_start() -> None:
    gang = gang_of(build(servers__replicas=8, servers__minReplicas=2), observed())
    assert gang is not None
    assert gang.groups == {"case-run": 3}


@pytest.mark.parametrize("settings", [SETTINGS, replace(GANGS, gang_schedulers=(("volcano", "volcano"),))])
def test_a_scheduler_without_groups_starts_pods_one_by_one(settings: Any) -> None:
    assert gang_of(replace(build(), settings=settings), observed()) is None


def test_a_cluster_without_kubernetes_groups_starts_pods_one_by_one() -> None:
    refused = {KUBERNETES: "the server could not find the requested resource"}
    assert gang_of(build(), observed(refused=refused)) is None
    assert gang_of(build(), observed(group(2), servers_in_group(), refused=refused)) is not None  # for a moment only


def test_a_scheduler_whose_groups_are_missing_is_named_and_looked_for_again() -> None:
    refused = {pod_groups.APIS["volcano"].kind: "not found"}
    text = (
        r"trainer.schedulerName is volcano, and PodGroups of scheduling.volcano.sh/v1beta1 cannot be read \(not found\)"
    )
    with pytest.raises(MissingApiError, match=text):
        gang_of(build(**scheduled_by("volcano")), observed(refused=refused))


def test_servers_that_run_already_are_not_refused_for_a_missing_api() -> None:
    refused = {pod_groups.APIS["volcano"].kind: "not found"}
    assert gang_of(build(**scheduled_by("volcano")), observed(server_set(), refused=refused)) is None


def test_a_run_without_its_schedulers_groups_gets_no_pods() -> None:
    plan = decide(state(**scheduled_by("volcano")), settings=GANGS, refused={pod_groups.APIS["volcano"].kind: "gone"})
    assert plan.objects == ()
    assert plan.requeue_after_s == GANGS.waiting_s
    assert "install that scheduler" in plan.status.message


@pytest.mark.parametrize("section", ["servers", "trainer"])
def test_two_schedulers_cannot_start_one_group(section: str) -> None:
    text = f"{section}.schedulerName is volcano, which starts groups of pods, and (trainer|servers).schedulerName "
    with pytest.raises(ValueError, match=f"{text}default-scheduler; set both to volcano"):
        gang_of(build(**{f"{section}__schedulerName": "volcano"}), observed())


def test_other_pairs_of_schedulers_are_left_alone() -> None:
    assert gang_of(build(servers__schedulerName="own"), observed()) is None


def test_the_next_attempt_joins_the_group_that_the_servers_are_in() -> None:
    gang = gang_of(build(attempt=2), observed(group(2), servers_in_group()))
    assert gang is not None
    assert gang.trainer == "case-run"


def test_a_group_never_waits_for_more_pods_than_there_are() -> None:
    """Its policy is immutable: five pods cannot come together any more once there are fewer servers."""
    fewer = observed(group(5), servers_in_group())
    assert gang_of(build(servers__replicas=2), fewer) == Gang("kubernetes")
    several = build(attempt=2, servers__replicas=2, trainer__nodes=2, config__train_dataset__batch_size=2)
    assert gang_of(several, fewer) == Gang("kubernetes", trainer="case-trainer-2", groups={"case-trainer-2": 2})


def test_more_servers_join_the_group_as_it_is() -> None:
    gang = gang_of(build(servers__replicas=9), observed(group(3), servers_in_group()))
    assert gang is not None
    assert gang.groups == {"case-run": 3}


def test_servers_that_were_started_without_a_group_stay_without() -> None:
    """As after an upgrade of the operator, or of the cluster: a lone restarted server would wait for ever."""
    assert gang_of(build(), observed(server_set())) == Gang("kubernetes")
    assert gang_of(build(), observed(server_set(), group(2))) == Gang("kubernetes")


@pytest.mark.parametrize("api", list(pod_groups.APIS))
def test_the_group_comes_before_its_pods_and_all_of_them_are_members(api: str) -> None:
    plan = decide(state(**scheduled_by(NAMES[api])), settings=GANGS)
    kind = pod_groups.APIS[api].kind
    made = manifest(plan, kind)
    assert made["apiVersion"] == pod_groups.APIS[api].api_version
    assert named(plan).index(f"{kind} case-run") < named(plan).index("StatefulSet case-server")
    for template in pods(plan.objects):
        metadata, spec = template["metadata"], template["spec"]
        assert spec["schedulerName"] == NAMES[api]
        membership = {
            "kubernetes": spec.get("schedulingGroup", {}).get("podGroupName"),
            "coscheduling": metadata["labels"].get("scheduling.x-k8s.io/pod-group"),
            "volcano": metadata["annotations"].get("scheduling.k8s.io/group-name"),
            "kai": metadata["annotations"].get("pod-group-name"),
        }
        assert {name for name, value in membership.items() if value == "case-run"} == {api}


@pytest.mark.parametrize(("api", "queue"), [("volcano", "volcano.sh/queue-name"), ("kai", "kai.scheduler/queue")])
def test_the_queue_is_that_of_the_experiments_label(api: str, queue: str) -> None:
    bare = build(**scheduled_by(NAMES[api]))
    labelled = bare.experiment.model_copy(
        update={"metadata": bare.experiment.metadata.model_copy(update={"labels": {queue: "team"}})}
    )
    made = replace(bare, experiment=labelled, gang=gang_of(bare, observed()))
    (one,) = pod_groups.manifests(made)
    assert one["spec"] == {"minMember": 2, "queue": "team"}
    labels = pod_groups.membership(made, made.gang, "case-run").labels
    assert labels == ({"kai.scheduler/queue": "team"} if api == "kai" else {})


def test_a_priority_class_of_all_pods_is_that_of_the_group() -> None:
    both = {"servers__priorityClassName": "high", "trainer__priorityClassName": "high"}
    made = build(**scheduled_by("volcano"), **both)
    made = replace(made, gang=gang_of(made, observed()))
    assert pod_groups.manifests(made)[0]["spec"] == {"minMember": 2, "priorityClassName": "high"}


def test_a_suspended_run_leaves_no_group() -> None:
    begun = started()
    running = continued(begun, decide(begun, *RUNNING))
    stopped = replace(running, experiment=experiment(runPolicy__suspend=True))
    assert (KUBERNETES, "case-run") in decide(stopped, *RUNNING, group(2), settings=GANGS).prune


def test_all_pods_of_servers_on_several_nodes_are_members() -> None:
    on_nodes = {"servers__replicas": 3, "servers__tensorParallel": 4, "servers__nodesPerServer": 2}
    gang = gang_of(build(**on_nodes), observed())
    assert gang is not None
    assert gang.groups == {"case-run": 7}
    fewer = gang_of(build(**on_nodes, servers__minReplicas=1), observed())
    assert fewer is not None
    assert fewer.groups == {"case-run": 3}


def test_servers_of_pools_start_with_the_others() -> None:
    pools = [{"name": "big", "replicas": 2, "tensorParallel": 2, "nodesPerServer": 2}]
    found = gang_of(build(servers__replicas=3, servers__minReplicas=2, servers__pools=pools), observed())
    assert found is not None
    assert found.groups == {"case-run": 2 + 4 + 1}
    plan = decide(state(servers__pools=pools), settings=GANGS)
    members = [one["metadata"]["annotations"].get(MEMBERS) for one in plan.objects if one["kind"] == "StatefulSet"]
    assert members == ["case-run", "case-run"]
