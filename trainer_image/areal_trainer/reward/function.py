"""A reward function: found by its import path, checked, called, and its answer checked."""

from __future__ import annotations

import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from types import FunctionType
from typing import Any

from areal_trainer.import_path import load_object

RewardFunction = Callable[..., Any]  # a number, or an awaitable of one
ARGUMENTS = ("prompt", "completions", "prompt_ids", "completion_ids")  # and the data's columns
ANY_SCRIPT = "__main__"


class RewardError(RuntimeError):
    """The reward of a sample could not be had: its function raised, hung, or gave no number."""

    def __init__(self, reason: str, *, task_id: str = "", completion: str = "") -> None:
        self.task_id = task_id
        self.completion = completion
        excerpt = completion if len(completion) <= 400 else f"{completion[:200]} … {completion[-200:]}"
        super().__init__(f"reward of sample {task_id or '(without task_id)'}: {reason}; its completion: {excerpt!r}")


@dataclass(frozen=True)
class FunctionAddress:
    """Where another process finds a reward function."""

    module: str  # "__main__" where the function stands in the script that runs
    name: str
    script: str | None = None  # file of that script

    def __str__(self) -> str:
        return f"{self.script or self.module}:{self.name}"


def load_reward_function(path: str) -> RewardFunction:
    """The function at ``path`` (``package.module:function``); ``ValueError`` where none there can be called as one."""
    function: RewardFunction = load_object(path, field="reward.path")
    check_signature(function, name=path)
    return function


def check_signature(function: RewardFunction, *, name: str) -> None:
    """``ValueError`` unless ``function`` takes our four arguments and any column of the data by keyword."""
    wanted = f"{', '.join(ARGUMENTS)}, answer, **kwargs"
    if not callable(function):
        raise ValueError(f"reward function {name} is {type(function).__name__}, not a function; make it f({wanted})")
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(
            f"reward function {name}{inspect.signature(function)} has no **kwargs; every column of the data comes as a "
            f"keyword: make it f({wanted})"
        )
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    if positional:
        raise ValueError(f"reward function {name} takes {', '.join(positional)} by position only; make it f({wanted})")


def check_columns(function: RewardFunction, columns: dict[str, Any], *, name: str) -> None:
    """``ValueError`` where ``function`` wants a keyword that the data does not have."""
    required = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [parameter for parameter in required if parameter not in ARGUMENTS and parameter not in columns]
    if missing:
        raise ValueError(
            f"reward function {name} wants {', '.join(missing)}, which the data has not; its columns are: "
            f"{', '.join(columns) or 'none'}"
        )


def address_of(function: RewardFunction) -> FunctionAddress:
    """Where a process started anew finds ``function``; ``ValueError`` for a lambda, a closure or an object."""
    if not isinstance(function, FunctionType) or "<" in function.__qualname__:
        raise ValueError(
            f"reward function {function!r} cannot be found by a process of the pool; define it with def at the top of "
            "a module, or set reward.processes=0 to call it in the trainer"
        )
    if function.__module__ != ANY_SCRIPT:
        return FunctionAddress(function.__module__, function.__qualname__)
    script = getattr(sys.modules[ANY_SCRIPT], "__file__", None)
    if script is None:
        raise ValueError(
            f"reward function {function.__qualname__} was typed into an interpreter; a process of the pool cannot "
            "import it: put it into a module, or set reward.processes=0"
        )
    return FunctionAddress(ANY_SCRIPT, function.__qualname__, os.path.abspath(script))


def explained(error: Exception) -> str:
    """What the user's function raised, and where."""
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without ours
    trace = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    return f"it raised {type(error).__name__}: {error}\n{trace}\n"


def checked_reward(value: Any) -> float:
    """``value`` as a finite float; ``ValueError`` for anything else, so that no fault turns into a reward."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"the reward function returned {value!r}, not a finite number")
    return float(value)
