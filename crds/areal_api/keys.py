"""Dotted keys of the configuration models: which exist, and which is nearest to one that does not."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from areal_api.section import Section


def section_of(annotation: Any) -> type[Section] | None:
    """The section in ``Section`` or ``Section | None``; None for every other type."""
    for option in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,):
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[Section]]]:
    """Every dotted key of ``model`` with its field and its section; a section comes before its keys."""
    for key, name in model.keys().items():
        field = model.model_fields[name]
        yield f"{prefix}{key}", field, model
        below = section_of(field.annotation)
        if below is not None:
            yield from fields(below, f"{prefix}{key}.")


def known(model: type[Section], key: str) -> bool:
    """Whether ``model`` has the dotted ``key``; everything below a free-form mapping is known."""
    section, parts = model, key.split(".")
    for position, part in enumerate(parts, start=1):
        name = section.keys().get(part)
        if name is None:
            return False
        if position == len(parts):
            return True
        annotation = section.model_fields[name].annotation
        below = section_of(annotation)
        if below is None:
            return get_origin(annotation) is dict
        section = below
    return False


def nearest_key(model: type[Section], key: str) -> str | None:
    """The dotted key that was probably meant: a similar spelling in its section, the same last part elsewhere, …"""
    names = [name for name, _, _ in fields(model)]
    above, _, last = key.rpartition(".")
    siblings = [name for name in names if name.rpartition(".")[0] == above]
    same_last = [name for name in names if name.rpartition(".")[2] == last]
    for candidates, cutoff in ((siblings, 0.85), (same_last, 0.0), (siblings, 0.7), (names, 0.6)):
        by_text = {name.rpartition(".")[2] if candidates is siblings else name: name for name in candidates}
        near = difflib.get_close_matches(last if candidates is siblings else key, by_text, n=1, cutoff=cutoff)
        if near:
            return by_text[near[0]]
    return None
