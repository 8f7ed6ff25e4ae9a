"""A reward of one's own: a right answer counts 1, a wrong one that can be read as a number 0.2.

A model that hardly ever finds the answer has something to learn from all the same. ``cpu.yaml`` uses it:

    config.reward.path=examples.gsm8k.format_reward:format_reward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_trainer.reward.gsm8k import answers_equal, extract_answer, reference_answer, to_number

FOR_THE_FORM = 0.2


def format_reward(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    answer: str,
    **kwargs: Any,
) -> float:
    """1 for the right final answer, ``FOR_THE_FORM`` for another number, 0 without one."""
    found = extract_answer(completions)
    if found is None:
        return 0.0
    if answers_equal(found, reference_answer(answer)):
        return 1.0
    return FOR_THE_FORM if to_number(found) is not None else 0.0
