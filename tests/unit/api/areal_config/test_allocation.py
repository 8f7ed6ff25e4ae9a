"""AReaL's allocation strings."""

from __future__ import annotations

import pytest

from areal_api.areal_config.allocation import Sizes, parse_allocation_mode, spread
from areal_api.errors import ConfigError


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
    ("ranks", "per_node", "nodes"), [(1, 8, (1, 1)), (8, 8, (1, 8)), (24, 8, (3, 8)), (2, 1, (2, 1))]
)
def test_ranks_fill_whole_nodes(ranks: int, per_node: int, nodes: tuple[int, int]) -> None:
    assert spread(ranks, per_node, key="k") == nodes


def test_ranks_that_leave_a_node_partly_empty_are_refused() -> None:
    with pytest.raises(ConfigError, match="k: 12 ranks of the trainer do not fill nodes of 8 GPUs"):
        spread(12, 8, key="k")
