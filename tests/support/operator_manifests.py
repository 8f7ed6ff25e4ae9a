"""Manifests of an experiment, for tests of their builders."""

from __future__ import annotations

from typing import Any

from support.operator_objects import decide, manifest, state


def made(kind: str, **changes: Any) -> Any:
    """The manifest of a kind that a new experiment gets."""
    return manifest(decide(state(**changes)), kind)


def pods(**changes: Any) -> list[Any]:
    """Pod specs of servers and trainer."""
    return [made(kind, **changes)["spec"]["template"]["spec"] for kind in ("StatefulSet", "Job")]


def env_of(pod: Any) -> dict[str, Any]:
    """Variables of the main container."""
    entries = pod["containers"][0]["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}
