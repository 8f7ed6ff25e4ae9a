"""Packing pods onto nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from areal_api.sizing.placement import Pod, unplaced


def test_eight_servers_and_eight_ranks_fit_two_nodes_of_eight() -> None:
    pods = [Pod("trainer-0", 8), *(Pod(f"server-{i}", 1) for i in range(8))]
    assert unplaced(pods, [8, 8]) == []


def test_servers_that_are_spread_already_leave_no_node_for_eight_ranks() -> None:
    assert unplaced([Pod("trainer-0", 8)], [4, 4]) == [Pod("trainer-0", 8)]


def test_a_pod_goes_to_the_fullest_node_on_which_it_fits() -> None:
    # 2 goes to the node with 3 free, so 7 still fits the other.
    assert unplaced([Pod("a", 2), Pod("b", 7)], [8, 3]) == []


SIZES = st.lists(st.integers(1, 8), max_size=8)


@given(SIZES, SIZES)
def test_what_is_placed_never_exceeds_the_free_gpus(pods: list[int], nodes: list[int]) -> None:
    left = unplaced([Pod(str(i), gpus) for i, gpus in enumerate(pods)], nodes)
    assert sum(pods) - sum(pod.gpus for pod in left) <= sum(nodes)
    assert all(pod.gpus > 0 for pod in left)
