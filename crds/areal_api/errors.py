"""The error of everything that a user writes: file, key, value and the fix, ready to print."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from areal_api.section import UNKNOWN_KEYS


class ConfigError(ValueError):
    """A configuration that cannot be used. The text names source, key, value and fix; print it without a traceback."""


def config_error(source: str, problems: list[str]) -> ConfigError:
    """One error for all problems of ``source``, a line each."""
    if len(problems) == 1:
        return ConfigError(f"{source}: {problems[0]}")
    return ConfigError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))


def problems_of(error: ValidationError, *, below: str = "") -> list[str]:
    """A line for each thing that pydantic found, ``actor.optimizer.lr: -1 is below 0; give at least 0``.

    ``below`` is a prefix of keys that the user does not write, as ``spec`` is in overrides.
    """
    lines: list[str] = []
    for details in error.errors(include_url=False):
        lines.extend(_lines(details, below))
    return lines


def _lines(details: ErrorDetails, below: str) -> list[str]:
    place = [str(part) for part in details["loc"]]
    if below and place[:1] == [below]:
        place = place[1:]
    context: Mapping[str, Any] = details.get("ctx", {})
    if details["type"] == UNKNOWN_KEYS:
        return [unknown_key([*place, key], context["known"]) for key in context["keys"]]
    where = ".".join(place)
    text = _text(details, context)
    return [f"{where}: {text}" if where else text]


def unknown_key(place: list[str], known: list[str]) -> str:
    """The line about one unknown key."""
    near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
    where = ".".join(place)
    if near:
        return f"{where}: unknown key; did you mean {'.'.join([*place[:-1], near[0]])}?"
    return f"{where}: unknown key; known here: {', '.join(sorted(known))}"


def _text(details: ErrorDetails, context: Mapping[str, Any]) -> str:
    value = _short(details["input"])
    kind = details["type"]
    if kind == "missing":
        return "is missing; set it"
    if kind == "literal_error":
        return f"{value} is none of {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _BOUNDS:
        return _BOUNDS[kind](value, context)
    for ending in ("_type", "_parsing", "_from_float", "_parsing_size"):
        wanted = _WANTED.get(kind.removesuffix(ending)) if kind.endswith(ending) else None
        if wanted:
            return f"{value} is not {wanted}; give {wanted}"
    return f"{value}: {details['msg'][:1].lower()}{details['msg'][1:]}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


_Text = Callable[[str, Mapping[str, Any]], str]

_BOUNDS: dict[str, _Text] = {
    "greater_than_equal": lambda value, context: f"{value} is below {context['ge']}; give at least {context['ge']}",
    "greater_than": lambda value, context: f"{value} is not above {context['gt']}; give more than {context['gt']}",
    "less_than_equal": lambda value, context: f"{value} is above {context['le']}; give at most {context['le']}",
    "less_than": lambda value, context: f"{value} is not below {context['lt']}; give less than {context['lt']}",
    "string_too_short": lambda value, context: f"{value} is shorter than {context['min_length']} characters",
    "string_too_long": lambda value, context: f"{value} is longer than {context['max_length']} characters",
    "too_long": lambda value, context: f"{value} has too many items; give at most {context['max_length']}",
    "too_short": lambda value, context: f"{value} has too few items; give at least {context['min_length']}",
    "string_pattern_mismatch": lambda value, context: f"{value} does not match {context['pattern']}",
}

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text (quote it where it looks like a number)",
    "list": "a list",
    "dict": "a section (keys and values)",
    "model": "a section (keys and values)",
    "model_attributes": "a section (keys and values)",
}
