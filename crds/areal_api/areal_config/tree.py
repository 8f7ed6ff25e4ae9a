"""Nested mappings addressed by dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]


def get(tree: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value at the dotted ``key``."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def pop(tree: Tree, key: str) -> Any:
    """Remove and return the value at ``key``; None if there is none."""
    *above, last = key.split(".")
    node = get(tree, ".".join(above)) if above else tree
    return node.pop(last, None) if isinstance(node, dict) else None


def set_in(tree: Tree, key: str, value: Any) -> None:
    """Set the value at ``key``, creating sections on the way."""
    *above, last = key.split(".")
    node = tree
    for part in above:
        below = node.get(part)
        if not isinstance(below, dict):
            below = node[part] = {}
        node = below
    node[last] = value


class Notes:
    """Messages about converted keys, grouped by reason."""

    def __init__(self) -> None:
        self._keys: dict[str, list[str]] = {}

    def add(self, key: str, reason: str) -> None:
        """Record ``reason`` for ``key``."""
        self._keys.setdefault(reason, []).append(key)

    def lines(self) -> list[str]:
        """One line per reason."""
        return [f"{', '.join(keys)}: {reason}" for reason, keys in self._keys.items()]
