"""Configuration errors: the text names file, key, value and fix, and is ready to print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from areal_api.keys import nearest_key
from areal_api.section import UNKNOWN_KEYS, Section, nearest


class ConfigError(ValueError):
    """An invalid configuration. The text names source, key, value and fix; print it without a traceback."""


def config_error(source: str, problems: list[str]) -> ConfigError:
    """One error for all problems of ``source``, one per line."""
    if len(problems) == 1:
        return ConfigError(f"{source}: {problems[0]}")
    return ConfigError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))


def problems_of(error: ValidationError, model: type[Section], *, unwritten: Sequence[str] = ()) -> list[str]:
    """One line per error of pydantic, such as ``actor.optimizer.lr: -1 is below 0; give at least 0``.

    ``unwritten`` are sections that the user's file does not contain, such as ``spec`` and ``config`` for AReaL's file.
    """
    lines: list[str] = []
    for details in error.errors(include_url=False):
        lines.extend(_lines(details, model, list(unwritten)))
    return lines


def unknown_key(key: str, model: type[Section], *, written: str | None = None) -> str:
    """The line about a key that ``model`` lacks. ``written`` is the key as the user wrote it."""
    near = nearest_key(model, key)
    text = written or key
    if near is None:
        return f"{text}: unknown key; grpo run --help lists the keys"
    hidden = len(key) - len(text)
    return f"{text}: unknown key; did you mean {near[hidden:] if near.startswith(key[:hidden]) else near}?"


def _lines(details: ErrorDetails, model: type[Section], unwritten: list[str]) -> list[str]:
    whole = [str(part) for part in details["loc"]]
    place = list(whole)
    while unwritten and place[:1] == unwritten[:1]:
        place, unwritten = place[1:], unwritten[1:]
    context: Mapping[str, Any] = details.get("ctx", {})
    if details["type"] == UNKNOWN_KEYS and any(
        isinstance(part, int) for part in details["loc"]
    ):  # in an item of a list
        return [f"{'.'.join([*place, key])}: unknown key; {nearest(key, context['known'])}" for key in context["keys"]]
    if details["type"] == UNKNOWN_KEYS:
        return [unknown_key(".".join([*whole, key]), model, written=".".join([*place, key])) for key in context["keys"]]
    where = ".".join(place)
    text = _text(details, context)
    return [f"{where}: {text}" if where else text]


def _text(details: ErrorDetails, context: Mapping[str, Any]) -> str:
    value = shown(details["input"])
    kind = details["type"]
    if kind == "missing":
        return "is missing; set it"
    if kind == "literal_error":
        return f"{value} is not one of {context['expected']}; give one of them"
    if kind == "value_error":
        return str(context["error"])
    if kind == "finite_number":
        return f"{value} is not a finite number; give a finite number"
    if kind in _BOUNDS:
        return _BOUNDS[kind](value, context)
    for ending in ("_type", "_parsing", "_from_float", "_parsing_size"):
        expected = _KINDS.get(kind.removesuffix(ending)) if kind.endswith(ending) else None
        if expected:
            quote = ", in quotes" if expected == "text" and isinstance(details["input"], int | float) else ""
            return f"{value} is not {expected}; give {expected}{quote}"
    return f"{value}: {details['msg'][:1].lower()}{details['msg'][1:]}"


def shown(value: Any) -> str:
    """A value as in a file, shortened to fit a line."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


_Text = Callable[[str, Mapping[str, Any]], str]


def _bound(comparison: str, advice: str, key: str) -> _Text:
    return lambda value, context: (
        f"{value} is {comparison} {_plain(context[key])}; give {advice} {_plain(context[key])}"
    )


_BOUNDS: dict[str, _Text] = {
    "greater_than_equal": _bound("below", "at least", "ge"),
    "greater_than": _bound("not above", "more than", "gt"),
    "less_than_equal": _bound("above", "at most", "le"),
    "less_than": _bound("not below", "less than", "lt"),
    "string_too_short": lambda value, context: f"{value} is shorter than {context['min_length']} characters",
    "string_too_long": lambda value, context: f"{value} is longer than {context['max_length']} characters",
    "too_long": lambda value, context: f"{value} has too many items; give at most {context['max_length']}",
    "too_short": lambda value, context: f"{value} has too few items; give at least {context['min_length']}",
    "string_pattern_mismatch": lambda value, context: f"{value} does not match {context['pattern']}",
}

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a section (keys and values)",
    "model": "a section (keys and values)",
    "model_attributes": "a section (keys and values)",
}


def describe(error: BaseException) -> str:
    """Type and text of an error for a log line; many, such as ``TimeoutError``, have no text of their own."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
