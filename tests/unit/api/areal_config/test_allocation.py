"""AReaL's allocation strings."""

from __future__ import annotations

import pytest

from areal_api.areal_config.allocation import Sizes, parse_allocation_mode, spread


@pytest.mark.parametrize(
    ("text", "servers", "trainer"),
    [
        ("sglang.d4p1t1+d4p1t1", Sizes(4, 1), Sizes(4, 1)),
        ("sglang:d4p1t1+d4p1t1", Sizes(4, 1), Sizes(4, 1)),
        ("sglang:d4t2+fsdp:d8", Sizes(4, 2), Sizes(8, 1)),
        ("sglang[rollout]:t2d1+fsdp[actor]:d2", Sizes(1, 2), Sizes(2, 1)),
        ("sglang:t8+d16", Sizes(1, 8), Sizes(16, 1)),
    ],
)
def test_allocation_modes_are_servers_and_ranks(text: str, servers: Sizes, trainer: Sizes) -> None:
    assert parse_allocation_mode(text) == (servers, trainer)


@pytest.mark.parametrize(
    ("ranks", "per_node", "nodes"),
    [
        (1, 8, (1, 1)),
        (8, 8, (1, 8)),
        (24, 8, (3, 8)),
        (2, 1, (2, 1)),
        (12, 8, (2, 6)),
        (9, 8, (3, 3)),
        (17, 8, (17, 1)),
    ],
)
def test_ranks_are_spread_evenly_over_few_nodes(ranks: int, per_node: int, nodes: tuple[int, int]) -> None:
    assert spread(ranks, per_node) == nodes
