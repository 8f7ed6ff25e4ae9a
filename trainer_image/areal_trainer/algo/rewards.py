"""From the raw task reward of a sample to the reward that is learned from."""

# B samples of this rank

import torch
from torch import Tensor

from areal_trainer.algo.norm import Level, normalize
from areal_trainer.algo.sequences import Reduce


def overlong_penalty(lengths_B: Tensor, *, max_new_tokens: int, overlong_tokens: int, factor: float) -> Tensor:
    """DAPO's soft punishment of long answers (arXiv:2503.14476, eq. 13): 0 up to `max_new_tokens − overlong_tokens`
    response tokens, then falling in a line to −factor at `max_new_tokens`. Added to the raw reward."""
    if not 0 < overlong_tokens <= max_new_tokens:
        raise ValueError(
            f"actor.overlong_tokens is {overlong_tokens}; "
            f"give a number from 1 to gconfig.max_new_tokens ({max_new_tokens})"
        )
    excess_B = lengths_B.float() - (max_new_tokens - overlong_tokens)
    return (-excess_B / overlong_tokens * factor).clamp(max=0.0)


def shape_rewards(rewards_B: Tensor, *, bias: float, scaling: float, clip: float) -> Tensor:
    """clip((r + bias) · scaling, ±clip)."""
    return ((rewards_B.float() + bias) * scaling).clamp(-clip, clip)


def normalize_rewards(
    rewards_B: Tensor,
    group_B: Tensor,
    *,
    groups: int,
    mean_level: Level | None,
    std_level: Level | None,
    leave_one_out: bool,
    unbiased: bool,
    reduce: Reduce,
    eps: float = 1e-5,
) -> Tensor:
    """Compare each sample's reward with the batch's or its group's: see `norm.normalize`.

    A group of which only one sample is left has nothing to compare with: at group level its reward becomes 0 (also with
    leave-one-out), and no other group notices.
    """
    return normalize(
        rewards_B,
        torch.arange(len(rewards_B), device=rewards_B.device),
        group_B,
        groups=groups,
        mean_level=mean_level,
        std_level=std_level,
        leave_one_out=leave_one_out,
        unbiased=unbiased,
        reduce=reduce,
        eps=eps,
    )
