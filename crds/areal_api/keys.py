"""Dotted keys of the configuration models: which exist, their types, and the nearest to an unknown one."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from areal_api.section import Section

_MAX_KEY = 200  # characters; longer keys are compared with none


def section_of(annotation: Any) -> type[Section] | None:
    """The section in ``Section`` or ``Section | None``; None for every other type."""
    for option in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,):
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def item_section_of(annotation: Any) -> type[Section] | None:
    """The section in ``list[Section]``; None for every other type."""
    return section_of(get_args(annotation)[0]) if get_origin(annotation) is list else None


def unannotated(annotation: Any) -> Any:
    """The type in ``Annotated[type, …]``; every other type as it is."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[Section]]]:
    """Every dotted key of ``model`` with its field and its section; a section comes before its keys."""
    for key, name in model.keys().items():
        field = model.model_fields[name]
        yield f"{prefix}{key}", field, model
        below = section_of(field.annotation)
        if below is not None:
            yield from fields(below, f"{prefix}{key}.")


def known(model: type[Section], key: str) -> bool:
    """Whether ``model`` has the dotted ``key``. Every key below a free-form mapping counts as known."""
    return type_of(model, key) is not None


def type_of(model: type[Section], key: str) -> Any:
    """The type of the dotted ``key``, ``Any`` inside a free-form mapping; None for an unknown key."""
    annotation: Any = model
    for part in key.split("."):
        section = section_of(annotation)
        if section is not None:
            name = section.keys().get(part)
            if name is None:
                return None
            annotation = section.model_fields[name].annotation
        elif get_origin(annotation) is dict:
            annotation = unannotated(get_args(annotation)[1])
        elif annotation is not Any:
            return None
    return annotation


def without_unknown(
    model: type[Section], data: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """``data`` without the keys that ``model`` lacks, and their dotted names. Free-form mappings are kept whole."""
    keys = model.keys()
    kept: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in data.items():
        if key not in keys:
            unknown.append(f"{prefix}{key}")
            continue
        annotation = model.model_fields[keys[key]].annotation
        section, item = section_of(annotation), item_section_of(annotation)
        if section is not None and isinstance(value, Mapping):
            value, below = without_unknown(section, value, f"{prefix}{key}.")
            unknown += below
        elif item is not None and isinstance(value, list):
            value, below = _items_without_unknown(item, value, f"{prefix}{key}")
            unknown += below
        kept[key] = value
    return kept, unknown


def _items_without_unknown(model: type[Section], items: list[Any], prefix: str) -> tuple[list[Any], list[str]]:
    kept: list[Any] = []
    unknown: list[str] = []
    for index, item in enumerate(items):
        if isinstance(item, Mapping):
            item, below = without_unknown(model, item, f"{prefix}[{index}].")
            unknown += below
        kept.append(item)
    return kept, unknown


def nearest_key(model: type[Section], key: str) -> str | None:
    """The dotted key that was probably meant, or None.

    Tried in order: a very similar name in the same section, the same last part in another section, a similar name in
    the same section, a similar dotted key.
    """
    if len(key) > _MAX_KEY:
        return None
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
