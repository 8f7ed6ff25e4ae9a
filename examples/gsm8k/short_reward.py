"""A reward of one's own: right answers, the shorter the better. Used by

grpo run examples/gsm8k/experiment.yaml config.reward.path=examples.gsm8k.short_reward:short_reward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_trainer.reward.gsm8k import gsm8k_reward_fn

FREE_TOKENS = 128  # that cost nothing
COST = 0.5  # of a completion of FREE_TOKENS more; a right answer stays worth at least as much


def short_reward(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    answer: str,
    **kwargs: Any,
) -> float:
    """0 for a wrong answer; 1 for a right one, less up to ``COST`` for the tokens beyond ``FREE_TOKENS``."""
    right = gsm8k_reward_fn(prompt, completions, prompt_ids, completion_ids, answer)
    excess = max(0, len(completion_ids) - FREE_TOKENS) / FREE_TOKENS
    return right * (1.0 - COST * min(excess, 1.0))
