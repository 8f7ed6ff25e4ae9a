"""From Kueue's assignments to the pods of a run."""

from __future__ import annotations

from typing import Any

from areal_operator.manifests import agents, servers, trainer
from areal_operator.manifests.base import Build
from areal_operator.observed import Object
from areal_operator.queueing import kueue
from areal_operator.queueing.placement import Placement, PodSetPlacement, flavors_of, placement_of
from support.operator_objects import SETTINGS, UID, experiment
from support.queued_objects import FLAVORS, admitted, queued_state

TOPOLOGY = {"levels": ["kubernetes.io/hostname"], "slices": []}
TOOL = [{"name": "t", "image": "t"}]


def templates(placement: Placement, **changes: Any) -> dict[str, Object]:
    """The pod templates of servers and trainer, and of the tools, as they are placed."""
    placed = placement.placed(experiment(**changes))
    build = Build(placed, "ns", UID, 1, "key", "key", SETTINGS)
    sets = {"servers": servers.server_set(build, placed.spec.servers.replicas), "trainer": trainer.trainer_job(build)}
    sets |= {one.name: agents.program_set(build, one) for one in placed.spec.tools}
    return {name: one["spec"]["template"] for name, one in sets.items()}


def test_without_a_queue_nothing_is_placed() -> None:
    same = experiment()
    assert Placement().placed(same) is same


def test_flavors_reach_the_pods_of_every_pod_set_beside_what_the_user_chose() -> None:
    fresh = queued_state(tools=TOOL)
    placement = placement_of(admitted(fresh), FLAVORS)
    assert flavors_of(admitted(fresh)) == {"a100"}
    own = {"key": "own", "operator": "Exists"}
    for template in templates(placement, tools=TOOL, servers__tolerations=[own]).values():
        assert template["spec"]["nodeSelector"] == {"gpu": "a100"}
        assert {"key": "gpu", "operator": "Exists"} in template["spec"]["tolerations"]
        assert "schedulingGates" not in template["spec"]
    assert own in templates(placement, servers__tolerations=[own])["servers"]["spec"]["tolerations"]


def test_a_pool_gets_its_flavor_and_not_that_of_the_other_servers() -> None:
    changes: dict[str, Any] = {
        "servers__replicas": 4,
        "servers__pools": [{"name": "own", "nodeSelector": {"rack": "2"}}, {"name": "bare", "replicas": 2}],
    }
    placement = Placement(
        {
            "servers": PodSetPlacement({"gpu": "l40s"}, [{"key": "l40s"}]),
            "pool-own": PodSetPlacement({"gpu": "h100"}, [{"key": "h100"}], {"a": "b"}),
            "pool-bare": PodSetPlacement(),
        },
        {"servers": 3, "pool-own": 1, "pool-bare": 2, "trainer": 1},
    )
    main, own, bare = placement.placed(experiment(**changes)).spec.servers.groups
    assert (main.servers.replicas, own.servers.replicas, bare.servers.replicas) == (3, 1, 2)
    assert own.servers.node_selector == {"rack": "2", "gpu": "h100"}
    assert (own.servers.tolerations, own.servers.pod_labels) == ([{"key": "h100"}], {"a": "b"})
    assert (bare.servers.node_selector, bare.servers.tolerations) == ({}, [])


def test_admission_checks_add_to_the_flavors() -> None:
    update = {
        "name": "trainer",
        "labels": {"pool": "x"},
        "annotations": {"cluster-autoscaler.kubernetes.io/consume-provisioning-request": "p"},
        "nodeSelector": {"pool": "x"},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
    }
    checks = [{"name": "provision", "state": "Ready", "podSetUpdates": [update]}]
    template = templates(placement_of(admitted(queued_state(), admissionChecks=checks), FLAVORS))
    trainer_template = template["trainer"]
    assert trainer_template["spec"]["nodeSelector"] == {"gpu": "a100", "pool": "x"}
    assert trainer_template["metadata"]["labels"]["pool"] == "x"
    assert update["annotations"].items() <= trainer_template["metadata"]["annotations"].items()
    assert {"key": "pool", "operator": "Exists"} in trainer_template["spec"]["tolerations"]
    assert template["servers"]["spec"]["nodeSelector"] == {"gpu": "a100"}


def test_pods_with_a_topology_wait_until_kueue_has_chosen_their_nodes() -> None:
    workload = admitted(queued_state())
    workload["status"]["admission"]["podSetAssignments"][0]["topologyAssignment"] = TOPOLOGY
    found = templates(placement_of(workload, FLAVORS))
    assert found["servers"]["spec"]["schedulingGates"] == [{"name": "kueue.x-k8s.io/topology"}]
    assert found["servers"]["metadata"]["labels"][kueue.POD_SET_LABEL] == "servers"
    assert found["servers"]["metadata"]["annotations"][kueue.WORKLOAD_ANNOTATION] == "case-run"
    assert "schedulingGates" not in found["trainer"]["spec"]


def test_servers_that_were_handed_back_are_not_started_again() -> None:
    fresh = queued_state(servers__replicas=4)
    workload = admitted(fresh, servers=4, reclaimablePods=[{"name": "servers", "count": 3}])
    placement = placement_of(workload, FLAVORS)
    assert placement.counts["servers"] == 1
    assert placement.placed(experiment(servers__replicas=4)).spec.servers.replicas == 1
    assert placement.placed(experiment(servers__replicas=1)).spec.servers.replicas == 1


def test_only_whole_servers_on_several_nodes_are_granted() -> None:
    wanted = experiment(servers__replicas=4, servers__tensorParallel=2, servers__nodesPerServer=2)
    placement = Placement({"servers": PodSetPlacement()}, {"servers": 5})
    assert placement.placed(wanted).spec.servers.replicas == 2
