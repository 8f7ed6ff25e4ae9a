"""Reads AReaL's files as its own loader (Hydra) does: base files, defaults of its dataclasses, variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from areal_api.areal_config.keys import foreign, is_areal_key
from areal_api.areal_config.scheduling import is_dropped
from areal_api.areal_config.tree import Tree
from areal_api.errors import ConfigError

MAX_BASE_FILES = 8
_GLOBAL = "@_global_"


def with_base_files(data: Tree, path: Path, read: Callable[[Path], Tree]) -> Tree:
    """``data`` merged with the files in its ``defaults`` list, in the list's order; ``_self_`` is ``data`` itself.

    Raises ``ConfigError`` for an entry that is not a file (Hydra's groups), and for more than ``MAX_BASE_FILES`` files.
    """
    return _merged(data, path, read, [path])


def _merged(data: Tree, path: Path, read: Callable[[Path], Tree], above: list[Path]) -> Tree:
    if not isinstance(data.get("defaults"), list):
        return data
    own = {key: value for key, value in data.items() if key != "defaults"}
    result: Tree = {}
    entries = data["defaults"]
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        if entry == "_self_":
            result = overlaid(result, own)
            continue
        if not isinstance(entry, str) or not entry.removesuffix(_GLOBAL):
            raise ConfigError(f"{path}: defaults: {entry!r} is not a file; write the keys that it stands for")
        base = path.parent / f"{entry.removesuffix(_GLOBAL).removesuffix('.yaml')}.yaml"
        if len(above) > MAX_BASE_FILES:
            chain = " → ".join(one.name for one in above)
            raise ConfigError(f"{path}: defaults: more than {MAX_BASE_FILES} files build on each other: {chain}")
        result = overlaid(result, _merged(read(base), base, read, [*above, base]))
    return result


def overlaid(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tree:
    """``base`` with the values of ``top``; sections are merged key by key."""
    result: Tree = dict(base)
    for key, value in top.items():
        below = result.get(key)
        result[key] = overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def without_unused_variables(data: Tree) -> Tree:
    """``data`` with null for the references in keys that conversion drops: what they refer to need not be set."""
    return {key: _unused(value, key) for key, value in data.items()}


def has_areal_keys(data: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether a configuration has keys of AReaL's own, such as ``allocation_mode``."""
    for key, value in data.items():
        if is_areal_key(f"{prefix}{key}") or (isinstance(value, Mapping) and has_areal_keys(value, f"{prefix}{key}.")):
            return True
    return False


def _unused(value: Any, key: str) -> Any:
    entry = foreign(key)
    dropped = is_dropped(key) or (entry is not None and entry.only is None)
    if dropped and "${" in str(value):
        return None
    if isinstance(value, Mapping):
        return {name: _unused(below, f"{key}.{name}") for name, below in value.items()}
    return [_unused(below, key) for below in value] if isinstance(value, list) else value
