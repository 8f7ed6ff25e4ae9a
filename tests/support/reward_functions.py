"""Reward functions that return, raise, hang or crash as the completion instructs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from typing import Any


def obedient(
    prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], answer: str, **kwargs: Any
) -> float:
    """1.0 if the completion equals the answer; some completions are instructions to fail."""
    match completions:
        case "hang":
            while True:
                pass
        case "hang in C":  # catastrophic backtracking: no signal handler and no other thread runs
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "exit":
            os._exit(3)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "raise":
            raise KeyError("no such operation")
        case "nan":
            return float("nan")
        case "none":
            return None  # type: ignore[return-value]
    return float(completions == answer)


async def obedient_async(
    prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], answer: str, **kwargs: Any
) -> float:
    """The same after 50 ms; ``sleep`` never returns."""
    await asyncio.sleep(3600 if completions == "sleep" else 0.05)
    return obedient(prompt, completions, prompt_ids, completion_ids, answer)


def received(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **kwargs: Any) -> float:
    """1.0 if every argument arrived unchanged."""
    expected = ("the prompt", "the completion", [1, 2], [3], {"answer": "5", "level": 2, "task_id": "t"})
    return float((prompt, completions, prompt_ids, completion_ids, kwargs) == expected)


def slow(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **kwargs: Any) -> float:
    """The process ID, after 50 ms."""
    time.sleep(0.05)
    return float(os.getpid())


def without_keywords(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int]) -> float:
    """Has no ``**kwargs``."""
    return 0.0
