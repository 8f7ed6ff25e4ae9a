"""Nesting depth without recursion."""

from __future__ import annotations

from typing import Any

from areal_operator.depth import is_deeper_than


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = {"a": value, "b": [2]} if level % 2 else [value, "x"]
    return value


def test_the_limit_is_exact() -> None:
    assert not is_deeper_than(nested(64), 64)
    assert is_deeper_than(nested(65), 64)
    assert not is_deeper_than("text", 0)


def test_any_depth_is_measured() -> None:
    assert is_deeper_than(nested(100_000), 64)
