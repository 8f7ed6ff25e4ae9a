"""Nesting depth of plain data, measured without recursion."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 64  # of a spec; no field of a pod is nested more than about 20 levels deep


def is_deeper_than(value: Any, limit: int) -> bool:
    """Whether mappings and lists in ``value`` are nested more than ``limit`` levels deep."""
    level = [value]
    for _ in range(limit):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)
