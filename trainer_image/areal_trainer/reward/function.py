"""Loading a reward function from its import path and validating its signature and return values."""

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
ARGUMENTS = ("prompt", "completions", "prompt_ids", "completion_ids")  # passed in addition to the dataset's columns
ANY_SCRIPT = "__main__"


class RewardError(RuntimeError):
    """Scoring a sample failed: the reward function raised, timed out, or did not return a finite number."""

    def __init__(self, reason: str, *, task_id: str = "", completion: str = "") -> None:
        self.task_id = task_id
        self.completion = completion
        excerpt = completion if len(completion) <= 400 else f"{completion[:200]} … {completion[-200:]}"
        super().__init__(f"reward of sample {task_id or '(without task_id)'}: {reason}; its completion: {excerpt!r}")


@dataclass(frozen=True)
class FunctionReference:
    """How another process imports a reward function."""

    module: str  # "__main__" if the running script defines the function
    name: str
    script: str | None = None  # path of that script

    def __str__(self) -> str:
        return f"{self.script or self.module}:{self.name}"


def load_reward_function(path: str) -> RewardFunction:
    """Import the reward function at ``path`` (``package.module:function``). Raises ``ValueError`` if it is none."""
    function: RewardFunction = load_object(path, field="reward.path")
    check_signature(function, name=path)
    return function


def check_signature(function: RewardFunction, *, name: str) -> None:
    """Raise ``ValueError`` unless ``function`` takes our four arguments and any dataset column by keyword."""
    fix = f"define it as f({', '.join(ARGUMENTS)}, answer, **kwargs)"
    if not callable(function):
        raise ValueError(f"reward function {name} is {type(function).__name__}, not a function; {fix}")
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(
            f"reward function {name}{inspect.signature(function)} has no **kwargs, but every dataset column is "
            f"passed as a keyword; {fix}"
        )
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    if positional:
        raise ValueError(f"reward function {name} has positional-only parameters {', '.join(positional)}; {fix}")


def check_columns(function: RewardFunction, columns: dict[str, Any], *, name: str) -> None:
    """Raise ``ValueError`` if ``function`` requires a keyword that is not a dataset column."""
    required = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [parameter for parameter in required if parameter not in ARGUMENTS and parameter not in columns]
    if missing:
        raise ValueError(
            f"reward function {name} requires {', '.join(missing)}, which the dataset does not have; its columns are: "
            f"{', '.join(columns) or 'none'}"
        )


def function_reference(function: RewardFunction) -> FunctionReference:
    """A reference for importing ``function`` elsewhere. Raises ``ValueError`` for lambdas, closures and objects."""
    if not isinstance(function, FunctionType) or "<" in function.__qualname__:
        raise ValueError(
            f"reward function {function!r} cannot be imported by the reward processes; define it with def at the top "
            "level of a module, or set reward.processes=0 to call it in the trainer"
        )
    if function.__module__ != ANY_SCRIPT:
        return FunctionReference(function.__module__, function.__qualname__)
    script = getattr(sys.modules[ANY_SCRIPT], "__file__", None)
    if script is None:
        raise ValueError(
            f"reward function {function.__qualname__} was defined in an interactive interpreter, so the reward "
            "processes cannot import it; put it into a module, or set reward.processes=0"
        )
    return FunctionReference(ANY_SCRIPT, function.__qualname__, os.path.abspath(script))


def describe_exception(error: Exception) -> str:
    """The exception of the user's function with its traceback."""
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without our own frame
    trace = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    return f"it raised {type(error).__name__}: {error}\n{trace}\n"


def checked_reward(value: Any) -> float:
    """``value`` as a finite float. Raises ``ValueError`` for anything else: an error must never become a reward."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"the reward function returned {value!r}, not a finite number")
    return float(value)
