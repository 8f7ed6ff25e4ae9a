"""Objects named by an import path, ``package.module:name``."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from functools import reduce
from types import ModuleType
from typing import Any


def load_object(path: str, *, field: str) -> Any:
    """The object at ``path`` (``package.module:name`` or ``package.module:Class.name``).

    Also searches the working directory. Raises ``ValueError``, naming ``field``, for an unknown module or name; errors
    raised while importing the module pass through.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"{field} is {path!r}, not of the form package.module:name")
    module = _module(module_name, path=path, field=field)
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError:
        near = difflib.get_close_matches(name, _public_names(module), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(_public_names(module)) or 'no names'}"
        raise ValueError(f"{field} is {path!r}, but module {module_name} has no {name!r}; {hint}") from None


def _module(module_name: str, *, path: str, field: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise  # the module exists; one of its imports does not
        raise ValueError(
            f"{field} is {path!r}, but there is no module {missing!r}; modules are searched in the working directory "
            f"({os.getcwd()}), PYTHONPATH and the installed packages"
        ) from error


def _public_names(module: ModuleType) -> list[str]:
    return sorted(name for name in vars(module) if not name.startswith("_"))
