"""A custom reward: 1 for a correct answer, 0.2 for any other number.

This gives a learning signal to a model that hardly ever finds the answer. ``cpu.yaml`` uses it:

    config.reward.path=examples.gsm8k.format_reward:format_reward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_trainer.reward.gsm8k import answers_equal, extract_answer, reference_answer
from areal_trainer.reward.numbers import parse_number

FORMAT_REWARD = 0.2


def format_reward(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    answer: str,
    **kwargs: Any,
) -> float:
    """1 for the correct final answer, ``FORMAT_REWARD`` for another number, 0 for no number."""
    found = extract_answer(completions)
    if found is None:
        return 0.0
    if answers_equal(found, reference_answer(answer)):
        return 1.0
    return FORMAT_REWARD if parse_number(found) is not None else 0.0
