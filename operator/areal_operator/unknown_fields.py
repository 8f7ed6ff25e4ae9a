"""Fields that a newer resource definition has and this operator does not know: left out and named, not refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from areal_api.keys import section_of
from areal_api.section import Section

MAX_NAMED = 10


def without_unknown_fields(data: Mapping[str, Any], model: type[Section]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``data`` without the fields that ``model`` lacks, and their paths (at most ``MAX_NAMED``).

    The API server has already pruned everything that its own definition lacks, so what is left out here comes from a
    newer definition. It recurses into sections only, never into free-form mappings.
    """
    unknown: list[str] = []
    known = _known(data, model, "", unknown)
    return known, tuple(unknown[:MAX_NAMED])


def _known(data: Mapping[str, Any], model: type[Section], prefix: str, unknown: list[str]) -> dict[str, Any]:
    keys = model.keys()
    result: dict[str, Any] = {}
    for key, value in data.items():
        name = keys.get(key)
        if name is None:
            unknown.append(f"{prefix}{key}")
            continue
        below = section_of(model.model_fields[name].annotation)
        if below is not None and isinstance(value, dict) and below.model_config.get("extra") == "forbid":
            value = _known(value, below, f"{prefix}{key}.", unknown)
        result[key] = value
    return result
