"""Deterministic reward functions for training tests."""

from __future__ import annotations

import itertools
import os
from typing import Any


def token_parity(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **rest: Any) -> float:
    """1 if the sum of the completion's token ids is even, else 0."""
    return float(sum(completion_ids) % 2 == 0)


_rewarded = itertools.count(1)


def one_then_zero_then_one(prompt: str, completions: str, **rest: Any) -> float:
    """0 for ``REWARD_ZEROS`` (first,last) of this process's samples, counted from 1, else 1."""
    first, last = (int(number) for number in os.environ["REWARD_ZEROS"].split(","))
    return float(not first <= next(_rewarded) <= last)
