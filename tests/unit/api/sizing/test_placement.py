"""Packing pods onto nodes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.placement import Pod, pods_of, unplaced


def spec(
    servers: int,
    gpus_per_server: int,
    trainer_nodes: int,
    ranks_per_node: int,
    *,
    on: tuple[str, str] = ("cuda", "cuda"),
) -> ExperimentSpec:
    batch = {"path": "d", "batch_size": trainer_nodes * ranks_per_node}
    actor = {"path": "m", "ppo_n_minibatches": 1}
    return ExperimentSpec.model_validate(
        {
            "config": {"experiment_name": "e", "actor": actor, "train_dataset": batch},
            "servers": {"device": on[0], "replicas": servers, "tensorParallel": gpus_per_server},
            "trainer": {"device": on[1], "nodes": trainer_nodes, "processesPerNode": ranks_per_node},
        }
    )


# Servers, GPUs per server, trainer nodes, ranks per node; free GPUs of the nodes; the pods that find none.
CASES: list[tuple[tuple[int, int, int, int], list[int], list[str]]] = [
    ((4, 1, 1, 4), [8], []),  # one machine: 4 + 4
    ((4, 1, 1, 4), [4, 4], []),
    ((4, 1, 1, 4), [7], ["server-3"]),
    ((8, 1, 1, 8), [8, 8], []),  # the servers are packed on one node
    ((8, 1, 1, 8), [4, 4], ["trainer-0"]),  # as if the servers were spread already: no node has 8
    ((8, 1, 1, 8), [12, 4], []),
    ((4, 2, 2, 4), [8, 8], []),
    ((2, 4, 2, 4), [8, 8], []),
    ((1, 8, 1, 8), [8, 8], []),
    ((1, 8, 2, 8), [8, 8], ["server-0"]),
    ((8, 2, 2, 8), [8, 8, 8, 8], []),
    ((9, 2, 2, 8), [8, 8, 8, 8], ["server-8"]),
    ((2, 8, 2, 8), [8, 8, 8, 4, 4], ["server-1"]),  # enough GPUs, on the wrong nodes
    ((1, 1, 1, 1), [1], ["server-0"]),
    ((1, 1, 1, 1), [], ["trainer-0", "server-0"]),
    ((1, 1, 1, 1), [0, 0], ["trainer-0", "server-0"]),
    ((3, 2, 1, 3), [5, 4], []),  # best fit would put the trainer on 4
    ((3, 3, 1, 4), [7, 6], []),
    ((2, 2, 2, 3), [6, 4], []),
    ((3, 2, 2, 3), [6, 5], ["server-2"]),
]


@pytest.mark.parametrize(("sizes", "nodes", "expected"), CASES)
def test_an_experiment_is_packed_onto_the_nodes(
    sizes: tuple[int, int, int, int], nodes: list[int], expected: list[str]
) -> None:
    assert [pod.name for pod in unplaced(pods_of(spec(*sizes)), nodes)] == expected


def test_processes_on_the_cpu_need_no_gpu() -> None:
    assert pods_of(spec(2, 1, 1, 1, on=("cpu", "cuda"))) == [Pod("trainer-0", 1)]
    assert pods_of(spec(1, 1, 1, 2, on=("cuda", "cpu"))) == [Pod("server-0", 1)]


def fewest_left(large: int, large_count: int, small: int, small_count: int, nodes: list[int]) -> tuple[int, int]:
    """By trying every number of large pods on every node."""
    best = (large_count, small_count)
    for counts in itertools.product(*(range(free // large + 1) for free in nodes)):
        if sum(counts) <= large_count:
            room = sum((free - count * large) // small for free, count in zip(nodes, counts, strict=True))
            best = min(best, (large_count - sum(counts), max(0, small_count - room)))
    return best


@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 5),
    st.lists(st.integers(0, 8), max_size=3),
)
def test_no_packing_places_more(first: int, count: int, second: int, others: int, nodes: list[int]) -> None:
    pods = [Pod("a", first)] * count + [Pod("b", second)] * others
    left = unplaced(pods, nodes)
    if first == second:
        assert len(left) == max(0, count + others - sum(free // first for free in nodes))
        return
    large, small = max(first, second), min(first, second)
    numbers = {first: count, second: others}
    found = tuple(sum(pod.gpus == size for pod in left) for size in (large, small))
    assert found == fewest_left(large, numbers[large], small, numbers[small], nodes)


def test_pools_are_pods_beside_the_other_servers() -> None:
    experiment = spec(1, 2, 1, 4)
    pools = [{"name": "big", "replicas": 2, "tensorParallel": 8}, {"name": "host", "device": "cpu"}]
    servers = experiment.servers.model_validate({**experiment.servers.model_dump(by_alias=True), "pools": pools})
    found = pods_of(experiment.model_copy(update={"servers": servers}))
    assert [(pod.name, pod.gpus) for pod in found] == [
        ("pool-big-0", 8),
        ("pool-big-1", 8),
        ("trainer-0", 4),
        ("server-0", 2),
    ]


@pytest.mark.parametrize(
    ("sizes", "nodes", "fits"),
    [
        ((8, 4, 2, 1), [8, 7], True),
        ((8, 4, 2, 1), [8, 6], False),
        ((5, 3, 2), [5, 5], True),
        ((5, 3, 2), [4, 2], False),
    ],
)
def test_pods_of_more_than_two_sizes(sizes: tuple[int, ...], nodes: list[int], fits: bool) -> None:
    assert (unplaced([Pod(str(size), size) for size in sizes], nodes) == []) is fits
