"""What a run asks of a Ray cluster, and the message about what is missing."""

from __future__ import annotations

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
