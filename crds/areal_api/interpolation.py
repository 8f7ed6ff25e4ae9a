"""``${…}`` in a configuration: references to other keys and, on a user's own machine, environment variables. Bounded.

A reference counts from the root (``${actor.path}``), or from its own section with a leading dot (``${.path}``; every
further dot is one section higher). A value that is a reference alone takes the type of its target, a section included.
``\\${`` is a literal ``${``. The syntax is OmegaConf's, whose resolvers and unbounded expansion are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

MAX_REFERENCES = 32  # a reference to a reference to …, and references inside a reference
MAX_DEPTH = 200  # nested sections, lists and references
MAX_OUTPUT = 2**20  # characters of all resolved texts; a value costs VALUE_COST
VALUE_COST = 32
MISSING = "???"  # OmegaConf's mark of a value that must still be set

Mode = Literal["environment", "keys"]

_BRACES = re.compile(r"\$\{|\}")
_REFERENCE = re.compile(r"\.*[\w-][\w/-]*(?:\.[\w-][\w/-]*|\[[\w-]+\])*")
_ENVIRONMENT = re.compile(r"oc\.env:\s*(?P<name>[A-Za-z_]\w*)\s*(?:,(?P<default>.*))?", re.DOTALL)

Path = tuple[str | int, ...]


def resolve_references(
    config: Mapping[str, Any], *, mode: Mode = "environment", defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``config`` with every ``${…}`` replaced; the keys of every mapping become text.

    ``mode="keys"`` is for configurations of others: only plain references to keys of ``config`` itself are allowed.
    ``mode="environment"`` also allows ``${oc.env:NAME}``, ``${oc.env:NAME,default}`` and references inside references.
    ``defaults`` are the values of dotted keys that ``config`` refers to without setting them.

    Raises ``ValueError`` with the key, the reference and the fix: for a key that does not exist, a cycle, a chain of
    more than ``MAX_REFERENCES``, nesting deeper than ``MAX_DEPTH``, or a result larger than ``MAX_OUTPUT``.
    """
    resolved = _Resolver(config, mode, defaults or {}).value_at(())
    assert isinstance(resolved, dict)
    return resolved


class _Resolver:
    def __init__(self, config: Mapping[str, Any], mode: Mode, defaults: Mapping[str, Any]) -> None:
        self._config = config
        self._mode = mode
        self._defaults = defaults
        self._budget = MAX_OUTPUT
        self._depth = 0
        self._resolved: dict[Path, Any] = {}  # texts by their place; sections are resolved again, as they cost again
        self._pending: list[Path] = []  # texts being resolved, outermost first
        self._following: list[Path] = []  # references to sections on the way to a key, outermost first

    def value_at(self, path: Path) -> Any:
        """The resolved value at ``path``, which exists."""
        value: Any = self._config
        for part in path:
            value = value[part]
        return self._resolve(value, path)

    def _resolve(self, value: Any, path: Path) -> Any:
        self._spend(VALUE_COST, path)
        if isinstance(value, str):
            return self._resolve_text(value, path)
        if not isinstance(value, Mapping | list | tuple):
            return value
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"{_dotted(path[:5])}…: values are nested more than {MAX_DEPTH} deep; flatten them")
        result: Any
        if isinstance(value, Mapping):
            result = {}
            for key, item in value.items():
                result[str(key)] = self._resolve(item, (*path, key))
        else:
            result = [self._resolve(item, (*path, index)) for index, item in enumerate(value)]
        self._depth -= 1
        return result

    def _resolve_text(self, text: str, path: Path) -> Any:
        if text == MISSING:
            raise ValueError(f"{_dotted(path)} is {MISSING}; set it")
        if "${" not in text:
            self._spend(len(text), path)
            return text
        if path in self._resolved:
            return self._resolved[path]
        if path in self._pending:
            cycle = " → ".join(_dotted(one) for one in [*self._pending[self._pending.index(path) :], path])
            raise ValueError(f"{_dotted(path)}: references form a cycle, {_cut(cycle)}; write one of the values out")
        if len(self._pending) >= MAX_REFERENCES:
            raise ValueError(
                f"{_dotted(self._pending[0])}: more than {MAX_REFERENCES} references in a chain; write the value out"
            )
        self._pending.append(path)
        result = self._expand(text, path)
        self._pending.pop()
        if not isinstance(result, dict | list):
            self._resolved[path] = result
        return result

    def _expand(self, text: str, path: Path, *, level: int = 0) -> Any:
        """Each reference in ``text`` replaced; a text that is one reference alone becomes its target's value."""
        if level > MAX_REFERENCES:
            raise ValueError(f"{_dotted(path)}: more than {MAX_REFERENCES} references inside each other; flatten them")
        parts: list[str] = []
        start = 0
        while (opening := text.find("${", start)) >= 0:
            before = text[start:opening]
            plain = before.rstrip("\\")
            slashes = len(before) - len(plain)
            parts.append(plain + "\\" * (slashes // 2))
            start = opening + 2
            if slashes % 2:
                parts.append("${")
                continue
            end = _closing_brace(text, start, path)
            value = self._target(text[start:end].strip(), path, level)
            if opening == 0 and end == len(text) - 1:
                return value
            if isinstance(value, dict | list):
                raise ValueError(f"{_dotted(path)}: {_cut(text)} puts a section into a text; refer to a single value")
            self._spend(len(str(value)), path)
            parts.append(str(value))
            start = end + 1
        parts.append(text[start:])
        self._spend(len(text), path)
        return "".join(parts)

    def _target(self, reference: str, path: Path, level: int) -> Any:
        if self._mode == "keys" and ("${" in reference or ":" in reference):
            raise ValueError(
                f"{_dotted(path)}: ${{{_cut(reference)}}} is not allowed here, only references to keys of this "
                "configuration, such as ${actor.path}; write the value out"
            )
        if "${" in reference:
            reference = str(self._expand(reference, path, level=level + 1)).strip()
        if reference.startswith("oc.env:"):
            return self._environment(reference, path)
        if not _REFERENCE.fullmatch(reference):
            forms = "${section.key}" if self._mode == "keys" else "${section.key} or ${oc.env:NAME}"
            raise ValueError(
                f"{_dotted(path)}: ${{{_cut(reference)}}} is not a reference; write {forms}, or \\${{ for a literal ${{"
            )
        target = self._path_of(reference, path)
        return self._defaults[reference] if target is None else self.value_at(target)

    def _environment(self, reference: str, path: Path) -> str | None:
        match = _ENVIRONMENT.fullmatch(reference)
        if match is None:
            raise ValueError(
                f"{_dotted(path)}: ${{{_cut(reference)}}} names no variable; write ${{oc.env:NAME}} or "
                "${oc.env:NAME,default}"
            )
        value, default = os.environ.get(match["name"]), match["default"]
        if value is None and default is None:
            raise ValueError(
                f"{_dotted(path)}: environment variable {match['name']} is not set; set it, or write "
                f"${{oc.env:{match['name']},default}}"
            )
        if value is None:
            default = default.strip()
            quoted = len(default) > 1 and default[0] in "'\"" and default[0] == default[-1]
            value = default[1:-1] if quoted else None if default == "null" else default
        self._spend(len(value or ""), path)
        return value

    def _path_of(self, reference: str, path: Path) -> Path | None:
        """The place that ``reference``, written at ``path``, refers to; None if only the defaults have it."""
        name = reference.lstrip(".")
        dots = len(reference) - len(name)
        if dots > len(path):
            raise ValueError(f"{_dotted(path)}: ${{{_cut(reference)}}} goes above the root; use fewer dots")
        target = path[: len(path) - dots] if dots else ()
        value: Any = self._config
        for part in target:
            value = value[part]
        for part in re.split(r"[.\[]", name.replace("]", "")):
            if isinstance(value, str) and (followed := self._followed(value, target)) is not None:
                target, value = followed
            key = _key(value, part)
            if key is None and reference in self._defaults:
                return None
            if key is None:
                raise ValueError(
                    f"{_dotted(path)}: ${{{_cut(reference)}}} refers to a key that is not set; set it, or write the "
                    "value out"
                )
            target = (*target, key)
            value = value[key]
        return target

    def _followed(self, text: str, path: Path) -> tuple[Path, Any] | None:
        """The place and value that ``text`` at ``path`` refers to if it is one reference to a key, and nothing else."""
        if not text.startswith("${") or _closing_brace(text, 2, path) != len(text) - 1:
            return None
        if len(self._following) >= MAX_REFERENCES:
            chain = " → ".join(_dotted(one) for one in self._following[:5])
            raise ValueError(
                f"{_dotted(path)}: more than {MAX_REFERENCES} references in a chain, {_cut(chain)}; write the value out"
            )
        self._spend(VALUE_COST, path)
        self._following.append(path)
        reference = text[2:-1].strip()
        if "${" in reference:
            reference = str(self._expand(reference, path)).strip()
        found: tuple[Path, Any] | None = None
        if _REFERENCE.fullmatch(reference) and (target := self._path_of(reference, path)) is not None:
            value: Any = self._config
            for part in target:
                value = value[part]
            found = (target, value)
            if isinstance(value, str):
                found = self._followed(value, target) or found
        self._following.pop()
        return found

    def _spend(self, size: int, path: Path) -> None:
        self._budget -= size
        if self._budget < 0:
            raise ValueError(
                f"{_dotted(path)}: the configuration with its references resolved is larger than {MAX_OUTPUT} "
                "characters; use fewer or shorter references"
            )


def _key(value: Any, part: str) -> str | int | None:
    """The key of ``value``, a section or list, that ``part`` of a reference names; None if it has none."""
    number = int(part) if part.isascii() and part.isdecimal() and len(part) < 10 else None
    if isinstance(value, Mapping):
        return part if part in value else number if number in value else None
    return number if isinstance(value, list | tuple) and number is not None and number < len(value) else None


def _closing_brace(text: str, start: int, path: Path) -> int:
    """Index of the brace that closes the reference whose content starts at ``start``."""
    depth = 1
    for brace in _BRACES.finditer(text, start):
        depth += 1 if brace[0] == "${" else -1
        if not depth:
            return brace.start()
    raise ValueError(f"{_dotted(path)}: {_cut(text)} has a ${{ without its }}; close it, or write \\${{")


def _dotted(path: Path) -> str:
    return _cut(".".join(str(part) for part in path)) or "configuration"


def _cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}…"
