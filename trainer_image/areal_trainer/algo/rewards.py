"""From the raw task reward of a sample to the reward used for learning."""

# B samples of this rank

import torch
from torch import Tensor

from areal_trainer.algo.norm import Norm, normalize
from areal_trainer.algo.sequences import Reduce


def overlong_penalty(lengths_B: Tensor, *, max_new_tokens: int, overlong_tokens: int, factor: float) -> Tensor:
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13), to be added to the raw reward.

    It is 0 up to `max_new_tokens − overlong_tokens` response tokens and falls linearly to −factor at `max_new_tokens`.
    Longer responses (several turns, each of at most `max_new_tokens`) get −factor, as in the paper. Raises ValueError
    for `overlong_tokens` outside 1 … `max_new_tokens`.
    """
    if not 0 < overlong_tokens <= max_new_tokens:
        raise ValueError(
            f"actor.overlong_tokens is {overlong_tokens}; "
            f"give a number from 1 to gconfig.max_new_tokens ({max_new_tokens})"
        )
    excess_B = lengths_B.float() - (max_new_tokens - overlong_tokens)
    return (-excess_B / overlong_tokens * factor).clamp(min=-factor, max=0.0)


def shape_rewards(rewards_B: Tensor, *, bias: float, scaling: float, clip: float) -> Tensor:
    """clip((r + bias) · scaling, ±clip)."""
    return ((rewards_B.float() + bias) * scaling).clamp(-clip, clip)


def normalize_rewards(rewards_B: Tensor, group_B: Tensor, norm: Norm, *, groups: int, reduce: Reduce) -> Tensor:
    """Compare each sample's reward with those of the batch or its group: see `norm.normalize`.

    The only sample left of a group has nothing to compare with: at group level its reward becomes 0 (also with
    leave-one-out). No other group is affected.
    """
    samples = torch.arange(len(rewards_B), device=rewards_B.device)
    return normalize(rewards_B, samples, group_B, norm, groups=groups, reduce=reduce)
