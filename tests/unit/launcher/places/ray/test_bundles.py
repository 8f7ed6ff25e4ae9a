"""What a run asks of a Ray cluster, and the message about what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_api.experiment import ExperimentSpec
from areal_api.load import load_experiment
from areal_launcher.places.ray.bundles import Bundle, Node, bundles_of, server_bundle, shortage, threads_of, unplaced

TINY = Path(__file__).parents[5] / "examples" / "tiny" / "experiment.yaml"
CUDA = ["servers.device=cuda", "trainer.device=cuda"]


def spec_of(*overrides: str) -> ExperimentSpec:
    return load_experiment(TINY, list(overrides)).spec


def node(name: str, *, gpus: float = 0, cpus: float = 8, used: float = 0, labels: dict[str, str] | None = None) -> Node:
    return Node(name, {"GPU": gpus, "CPU": cpus}, {"GPU": gpus - used, "CPU": cpus}, labels or {})


def test_every_server_and_trainer_node_has_a_bundle() -> None:
    spec = spec_of(*CUDA, "servers.replicas=2", "servers.tensorParallel=4", "trainer.processesPerNode=8")
    assert [(bundle.name, dict(bundle.resources)) for bundle in bundles_of(spec)] == [
        ("server-0", {"CPU": 4.0, "GPU": 4.0}),
        ("server-1", {"CPU": 4.0, "GPU": 4.0}),
        ("trainer", {"CPU": 8.0, "GPU": 8.0}),
    ]


def test_requests_set_cpus_and_memory_and_the_selector_the_labels() -> None:
    spec = spec_of("servers.resources={requests: {cpu: 1500m, memory: 2Gi}}", "servers.nodeSelector={disk: fast}")
    bundle = server_bundle(spec, 3)
    assert (bundle.name, dict(bundle.labels)) == ("server-3", {"disk": "fast"})
    assert dict(bundle.resources) == {"CPU": 2.0, "memory": 2.0 * 2**30}


def test_other_names_are_resources_of_the_cluster_and_those_of_kubernetes_are_not_asked_for() -> None:
    requests = {"cpu": 2, "H100": 1.5, "license": "500m", "rdma/ib": 1, "ephemeral-storage": "1Gi", "none": 0}
    spec = spec_of(f"servers.resources={{requests: {json.dumps(requests)}}}")
    assert dict(server_bundle(spec, 0).resources) == {"CPU": 2.0, "H100": 2.0, "license": 0.5}
    bundle = server_bundle(spec, 0)
    text = shortage([bundle], [Node("a", {"CPU": 4, "H100": 1}, {"CPU": 4, "H100": 1})])
    assert "server-0 needs 2 CPUs, 2 H100, 0.5 license on one node" in text
    assert "a 4 CPUs of 4, 1 H100 of 1, 0 license of 0" in text


def test_a_bundle_is_never_empty() -> None:
    assert dict(server_bundle(spec_of("servers.resources={requests: {cpu: 0}}"), 0).resources) == {"CPU": 1.0}


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ("{GPU: 2}", "servers.resources: GPU cannot be asked of Ray; GPUs follow from servers.tensorParallel"),
        ("{num_cpus: 2}", "servers.resources: num_cpus cannot be asked of Ray"),
        ("{memory: 4Ei}", "servers.resources: 4.61169e\\+18 of memory is more than Ray can count"),
    ],
)
def test_what_ray_cannot_be_asked_for_is_refused(requests: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        server_bundle(spec_of(f"servers.resources={{requests: {requests}}}"), 0)


def test_gpus_under_another_name_are_pointed_out() -> None:
    named = [Node("a", {"CPU": 8, "gpu_h100": 8}, {"CPU": 8, "gpu_h100": 8})]
    bundles = [Bundle("server-0", {"GPU": 2, "CPU": 1})]
    assert shortage(bundles, named).endswith(
        "; its nodes declare gpu_h100 but not Ray's own GPU: start Ray there with --num-gpus"
    )
    assert "gpu_h100" not in shortage(bundles, [*named, node("b", gpus=1)])


def test_a_head_node_without_cpus_leaves_the_others_to_the_run() -> None:
    head = Node("head", {"memory": 1e9}, {"memory": 1e9})
    bundles = [Bundle("server-0", {"CPU": 1}), Bundle("trainer", {"CPU": 2})]
    assert unplaced(bundles, [head, node("a", cpus=3)], empty=False) == []
    assert "head 0 CPUs of 0; a 2 CPUs of 2" in shortage(bundles, [head, node("a", cpus=2)])


def test_processes_on_cpu_share_the_cpus_of_their_bundle() -> None:
    assert threads_of(spec_of()) == 1
    requests = "resources={requests: {cpu: 8}}"
    spec = spec_of(f"servers.{requests}", f"trainer.{requests}", "trainer.processesPerNode=2")
    assert threads_of(spec) == 4


def test_bundles_are_packed_and_those_without_room_are_named() -> None:
    bundles = [Bundle(f"server-{i}", {"GPU": 2, "CPU": 1}) for i in range(3)] + [
        Bundle("trainer", {"GPU": 4, "CPU": 4})
    ]
    assert unplaced(bundles, [node("a", gpus=4), node("b", gpus=6)], empty=False) == []
    left = unplaced(bundles, [node("a", gpus=4), node("b", gpus=4)], empty=False)
    assert [bundle.name for bundle in left] == ["server-2"]


def test_a_label_that_no_node_has_leaves_no_room() -> None:
    bundle = Bundle("server-0", {"CPU": 1}, {"zone": "b"})
    assert unplaced([bundle], [node("a")], empty=True) == [bundle]
    assert unplaced([bundle], [node("a", labels={"zone": "b", "x": "y"})], empty=True) == []


def test_the_message_says_what_is_missing_where_and_why() -> None:
    bundles = [Bundle(f"server-{i}", {"GPU": 2, "CPU": 1}) for i in range(2)]
    assert shortage(bundles, [node("10.0.0.1", gpus=4, used=2), node("10.0.0.2")]) == (
        "missing 2 GPUs, 1 CPUs: server-1 needs 2 GPUs, 1 CPUs on one node. "
        "Free: 10.0.0.1 2 GPUs of 4, 8 CPUs of 8; 10.0.0.2 0 GPUs of 0, 8 CPUs of 8; other work holds them"
    )
    assert shortage(bundles, [node("a", gpus=1)]).endswith("the cluster is too small even when nothing else runs")


@pytest.mark.parametrize("count", [9, 2000])
def test_the_message_stays_short_on_large_clusters(count: int) -> None:
    bundles = [Bundle(f"server-{i}", {"GPU": 8, "CPU": 1}) for i in range(1000)]
    text = shortage(bundles, [node(f"n{i}", gpus=1) for i in range(count)])
    assert len(text) < 1500
    assert f"and {count - 8} more nodes" in text
