"""Deterministic reward functions for training tests."""

from __future__ import annotations

import itertools
import os
from typing import Any


def token_parity(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **rest: Any) -> float:
    """1 if the sum of the completion's token ids is even, else 0."""
    return float(sum(completion_ids) % 2 == 0)


_rewarded = itertools.count(1)


def one_for_the_first_samples(prompt: str, completions: str, **rest: Any) -> float:
    """1 for the first ``REWARD_SAMPLES`` samples of this process, else 0."""
    return float(next(_rewarded) <= int(os.environ["REWARD_SAMPLES"]))
