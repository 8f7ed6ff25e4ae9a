"""The Workload: pod sets, requests, and what counts as the same gang."""

from __future__ import annotations

from typing import Any

import pytest

from areal_operator.manifests.base import Build, Manifest
from areal_operator.queueing import kueue
from areal_operator.queueing.workload import GANG, workload
from support.operator_objects import SETTINGS, UID, experiment

ONLINE = {"config__rollout__agent__mode": "online"}


def made(queue: str = "q", **changes: Any) -> Manifest:
    build = Build(experiment(**changes), "ns", UID, 1, "key", "key", SETTINGS)
    return workload(build, queue, priority=None)


def gang(**changes: Any) -> str:
    return str(made(**changes)["metadata"]["annotations"][GANG])


def test_there_is_a_pod_set_for_servers_trainer_agents_and_tools() -> None:
    spec = made(
        servers__replicas=3,
        trainer__nodes=2,
        agents=[{"name": "a", "replicas": 2}],
        tools=[{"name": "t", "image": "t"}],
        **ONLINE,
    )["spec"]
    counts = {one["name"]: one["count"] for one in spec["podSets"]}
    assert counts == {"servers": 3, "trainer": 2, "agent-a": 2, "tool-t": 1}
    assert spec["queueName"] == "q"


def test_each_pool_of_servers_is_a_pod_set() -> None:
    pools = [{"name": "big", "replicas": 2, "tensorParallel": 8, "nodesPerServer": 2, "nodeSelector": {"gpu": "h100"}}]
    pod_sets = made(servers__replicas=3, servers__minReplicas=1, servers__pools=pools)["spec"]["podSets"]
    assert [(one["name"], one["count"], one.get("minCount")) for one in pod_sets] == [
        ("servers", 3, 1),
        ("pool-big", 4, None),
        ("trainer", 1, None),
    ]
    big = pod_sets[1]["template"]["spec"]
    assert big["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == "4"
    assert big["nodeSelector"] == {"gpu": "h100"}


def test_pools_agents_and_tools_have_at_most_six_pod_sets_together() -> None:
    pools = [{"name": f"p{i}"} for i in range(6)]
    assert len(made(servers__pools=pools)["spec"]["podSets"]) == kueue.MAX_POD_SETS
    with pytest.raises(ValueError, match=r"servers.pools, agents and tools are 7 together, .* at most 6"):
        made(servers__pools=pools, agents=[{"name": "a"}], **ONLINE)


def test_requests_are_completed_from_limits_and_commands_are_left_out() -> None:
    servers = made(servers__resources={"limits": {"memory": "9Gi"}, "requests": {"cpu": "1"}})["spec"]["podSets"][0]
    (container,) = servers["template"]["spec"]["containers"]
    assert container == {
        "name": "server",
        "resources": {"requests": {"memory": "9Gi", "cpu": "1", "nvidia.com/gpu": "1"}},
    }


def test_a_minimum_of_servers_is_one_pod_sets_minimum() -> None:
    pod_sets = made(servers__replicas=8, servers__minReplicas=2)["spec"]["podSets"]
    assert [one.get("minCount") for one in pod_sets] == [2, None]
    assert "minCount" not in made(servers__replicas=2, servers__minReplicas=2)["spec"]["podSets"][0]


@pytest.mark.parametrize(
    ("annotation", "request_"),
    [
        ("kueue.x-k8s.io/podset-required-topology", {"required": "rack"}),
        ("kueue.x-k8s.io/podset-preferred-topology", {"preferred": "rack"}),
    ],
)
def test_a_topology_in_the_pods_annotations_is_requested(annotation: str, request_: dict[str, str]) -> None:
    pod_sets = made(servers__podAnnotations={annotation: "rack"}, trainer__podAnnotations={annotation: "rack"})
    servers, trainer = pod_sets["spec"]["podSets"]
    assert servers["topologyRequest"] == {**request_, "podIndexLabel": "apps.kubernetes.io/pod-index"}
    assert trainer["topologyRequest"] == {**request_, "podIndexLabel": "batch.kubernetes.io/job-completion-index"}


def test_two_topologies_are_refused() -> None:
    both = {kueue.TOPOLOGY_ANNOTATIONS["required"]: "rack", kueue.TOPOLOGY_ANNOTATIONS["preferred"]: "rack"}
    with pytest.raises(ValueError, match=r"podset-required-topology and .*podset-preferred-topology; keep one"):
        made(servers__podAnnotations=both)


def test_more_programs_than_pod_sets_are_refused() -> None:
    tools = [{"name": f"t{index}", "image": "t"} for index in range(7)]
    with pytest.raises(ValueError, match="agents and tools are 7 together, and in a queue of Kueue at most 6"):
        made(tools=tools)


@pytest.mark.parametrize(
    "changes",
    [
        {"servers__replicas": 5},
        {"servers__replicas": 5, "servers__minReplicas": 2},
        {"servers__image": "other"},
        {"trainer__env": [{"name": "A", "value": "1"}]},
        {"config__seed": 7},
    ],
)
def test_what_requests_nothing_else_is_the_same_gang(changes: dict[str, Any]) -> None:
    assert gang(**changes) == gang()


@pytest.mark.parametrize(
    "changes",
    [
        {"queue": "other"},
        {"trainer__nodes": 2},
        {"trainer__nodeSelector": {"a": "b"}},
        {"servers__tolerations": [{"operator": "Exists"}]},
        {"servers__resources": {"limits": {"memory": "1Gi"}}},
        {"servers__podAnnotations": {kueue.TOPOLOGY_ANNOTATIONS["required"]: "rack"}},
        {"tools": [{"name": "t", "image": "t"}]},
    ],
)
def test_what_requests_something_else_is_another_gang(changes: dict[str, Any]) -> None:
    assert gang(**changes) != gang()


def test_servers_on_several_nodes_are_counted_by_pods() -> None:
    on_nodes = {"servers__replicas": 3, "servers__minReplicas": 1, "servers__tensorParallel": 2}
    servers = made(**on_nodes, servers__nodesPerServer=2)["spec"]["podSets"][0]
    assert (servers["count"], servers["minCount"]) == (6, 2)
