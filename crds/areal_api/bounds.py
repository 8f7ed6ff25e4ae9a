"""Limits on everything that an experiment may contain. The operator reads experiments of users it does not trust.

A field without its own limit gets the ones here, in the models and in the CRD (``generate/crd.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

MAX_TEXT = 16_384  # characters of a text
MAX_STATUS_TEXT = 4_096  # characters of a text in the status
MAX_ITEMS = 256  # items of a list
MAX_KEY = 1_024  # characters of a key of a mapping
MAX_ENTRIES = 128  # keys of a mapping
MAX_INTEGER = 2**53 - 1  # the largest that JSON parsers agree on
MAX_FREE_FORM_DEPTH = 4  # nested mappings and lists below a free-form mapping
MAX_DEPTH = 32  # nested mappings and lists of an experiment; affinity needs 12
MAX_VALUES = 20_000  # values of an experiment
MAX_TOTAL_TEXT = 262_144  # characters of all keys and texts; a ConfigMap holds 1 MiB


def problem_of_size(data: Any) -> str | None:
    """Why ``data`` is too deep or too large for an experiment; None if it is not. Iterative, so depth costs nothing."""
    values = characters = 0
    pending: list[tuple[Any, int]] = [(data, 0)]
    while pending:
        value, depth = pending.pop()
        values += 1
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, Mapping | list | tuple):
            if depth >= MAX_DEPTH:
                return f"values are nested more than {MAX_DEPTH} levels deep; flatten them"
            if values + len(pending) + len(value) > MAX_VALUES:
                return f"more than {MAX_VALUES} values; remove some"
            if isinstance(value, Mapping):
                characters += sum(len(str(key)) for key in value)
                pending += [(item, depth + 1) for item in value.values()]
            else:
                pending += [(item, depth + 1) for item in value]
        if characters > MAX_TOTAL_TEXT:
            return f"more than {MAX_TOTAL_TEXT} characters of text; shorten it"
    return None


def problem_of_value(value: Any) -> str | None:
    """Why the value of one key breaks a general limit; None if it does not."""
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"has {len(value)} characters, above {MAX_TEXT}; shorten it"
    if isinstance(value, str) and "\x00" in value:
        return "contains a NUL character, which no argument, variable or path can have; remove it"
    if isinstance(value, list | tuple):
        if len(value) > MAX_ITEMS:
            return f"has {len(value)} items, above {MAX_ITEMS}; remove some"
        return next((problem for item in value if isinstance(item, str) and (problem := problem_of_value(item))), None)
    if isinstance(value, dict):
        if len(value) > MAX_ENTRIES:
            return f"has {len(value)} keys, above {MAX_ENTRIES}; remove some"
        texts = (text for pair in value.items() for text in pair if isinstance(text, str))
        return next((problem for text in texts if (problem := problem_of_value(text))), None)
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return f"is {'above' if value > 0 else 'below −'}{' ' if value > 0 else ''}{MAX_INTEGER}; give a smaller number"
    return None


def _check_free_form(value: dict[str, Any]) -> dict[str, Any]:
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, dict | list):
            if depth > MAX_FREE_FORM_DEPTH:
                raise ValueError(f"is nested more than {MAX_FREE_FORM_DEPTH} levels deep; flatten it")
            pending += [(item, depth + 1) for item in (node.values() if isinstance(node, dict) else node)]
        if (problem := problem_of_value(node)) is not None:
            raise ValueError(f"a value {problem}")
    return value


FreeForm = Annotated[dict[str, Any], AfterValidator(_check_free_form)]
"""A mapping with any keys: values are scalars, or lists and mappings of at most ``MAX_FREE_FORM_DEPTH`` levels."""
