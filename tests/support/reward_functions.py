"""Reward functions that answer, fail, hang and die as the completion says."""

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
    """1.0 where the completion is the answer; orders in the completion are obeyed."""
    match completions:
        case "hang":
            while True:
                pass
        case "hang in C":  # catastrophic backtracking: no Python signal handler, no other thread ever runs
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
    """The same after a moment's wait; ``sleep`` never returns."""
    await asyncio.sleep(3600 if completions == "sleep" else 0.05)
    return obedient(prompt, completions, prompt_ids, completion_ids, answer)


def received(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **kwargs: Any) -> float:
    """1.0 where every argument came as the test sent it."""
    sent = ("the prompt", "the completion", [1, 2], [3], {"answer": "5", "level": 2, "task_id": "t"})
    return float((prompt, completions, prompt_ids, completion_ids, kwargs) == sent)


def slow(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **kwargs: Any) -> float:
    """The process's number, after 50 ms."""
    time.sleep(0.05)
    return float(os.getpid())


def without_keywords(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int]) -> float:
    """Lacks ``**kwargs``."""
    return 0.0
