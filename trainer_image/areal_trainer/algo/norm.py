"""Centre and scale values by batch or by group. Groups may be spread over ranks and may lack samples."""

# B samples of this rank, N values of these samples, G groups over all ranks

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from areal_trainer.algo.sequences import Reduce

Level = Literal["batch", "group"]


@dataclass(frozen=True)
class Norm:
    """(x − μ) / (σ + eps), with each of μ and σ over the batch, over the group, or left out (None)."""

    mean_level: Level | None
    std_level: Level | None
    leave_one_out: bool = False  # μ is over the values of all *other* samples
    unbiased: bool = True  # divide the variance by N − 1 instead of N
    eps: float = 1e-5


def dense_groups(episodes: Sequence[int], all_episodes: Iterable[int]) -> tuple[Tensor, int]:
    """Number the groups of a batch 0…G−1, identically on every rank.

    `episodes` are the group numbers of this rank's samples, `all_episodes` those of all ranks in any order and with
    repetitions. Returns the index of each of this rank's samples (int64) and G.
    """
    index = {episode: i for i, episode in enumerate(sorted(set(all_episodes)))}
    return torch.tensor([index[episode] for episode in episodes], dtype=torch.int64), len(index)


def normalize(
    values_N: Tensor, sample_N: Tensor, group_B: Tensor, norm: Norm, *, groups: int, reduce: Reduce
) -> Tensor:
    """Apply `norm` to N values. `sample_N` is the sample of each value, `group_B` the group of each sample.

    σ is always computed about the plain mean of the same level. Only samples that are present count, so a lost sample
    changes its own group alone. Values without anything to compare with become 0: those of a group (or batch) with one
    sample and, if σ is used, those that are all equal.
    """
    dtype = torch.promote_types(values_N.dtype, torch.float32)
    if norm.mean_level is None and norm.std_level is None:
        return values_N.to(dtype)
    values_N = values_N.double()
    group_N = group_B[sample_N]
    samples = len(group_B)
    own_count_B = torch.bincount(sample_N, minlength=samples).double()
    own_sum_B = torch.zeros_like(own_count_B).index_add_(0, sample_N, values_N)
    parts_B3 = torch.stack([(own_count_B > 0).double(), own_count_B, own_sum_B], dim=1)
    group_G3 = reduce(parts_B3.new_zeros(groups, 3).index_add_(0, group_B, parts_B3))
    batch_G3 = group_G3.sum(0, keepdim=True).expand_as(group_G3)
    totals = {"group": group_G3, "batch": batch_G3}

    result_N = values_N
    comparable_G = torch.ones(groups, dtype=torch.bool, device=values_N.device)
    if norm.mean_level is not None:
        n_samples_G, count_G, sum_G = totals[norm.mean_level].unbind(1)
        comparable_G &= n_samples_G > 1
        if norm.leave_one_out:
            others_N = (count_G[group_B] - own_count_B).clamp(min=1)[sample_N]
            mean_N = (sum_G[group_B] - own_sum_B)[sample_N] / others_N
        else:
            mean_N = (sum_G / count_G.clamp(min=1))[group_N]
        result_N = result_N - mean_N
    if norm.std_level is not None:
        n_samples_G, count_G, sum_G = totals[norm.std_level].unbind(1)
        std_G, mean_G = _std(values_N, group_N, count_G, sum_G, norm, reduce)
        # If the mean is of another level, dividing values that differ by rounding alone would scale them by 1/eps.
        comparable_G &= (n_samples_G > 1) & (std_G > 1e-12 * mean_G.abs())
        result_N = result_N / (std_G + norm.eps)[group_N]
    return torch.where(comparable_G[group_N], result_N, 0.0).to(dtype)


def groups_without_signal(rewards_B: Tensor, group_B: Tensor, *, groups: int, reduce: Reduce) -> float:
    """Share of the groups whose rewards are all equal, which teach nothing if rewards are compared within a group."""
    rewards_B = rewards_B.double()
    ones_B = torch.ones_like(rewards_B)
    count_G, sum_G = reduce(
        torch.zeros(2, groups, dtype=torch.float64).index_add_(1, group_B, torch.stack([ones_B, rewards_B]))
    )
    mean_G = sum_G / count_G.clamp(min=1)
    square_B = (rewards_B - mean_G[group_B]).square()
    square_G = reduce(torch.zeros_like(mean_G).index_add_(0, group_B, square_B))
    equal_G = square_G <= count_G * (1e-9 * (1 + mean_G.abs())).square()  # differences by rounding alone
    return float((equal_G & (count_G > 0)).sum() / (count_G > 0).sum().clamp(min=1))


def standard_error(rewards_B: Tensor, group_B: Tensor, *, groups: int, reduce: Reduce) -> float | None:
    """Standard error of the mean reward: standard deviation of the groups' mean rewards ÷ √groups; None for one group.

    Samples of one prompt are alike, so they do not count as independent.
    """
    ones_B = torch.ones_like(rewards_B, dtype=torch.float64)
    count_G, sum_G = reduce(
        torch.zeros(2, groups, dtype=torch.float64).index_add_(1, group_B, torch.stack([ones_B, rewards_B.double()]))
    )
    mean_G = (sum_G / count_G.clamp(min=1))[count_G > 0]
    return float(mean_G.std() / len(mean_G) ** 0.5) if len(mean_G) > 1 else None


def _std(
    values_N: Tensor, group_N: Tensor, count_G: Tensor, sum_G: Tensor, norm: Norm, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    # Two passes: one-pass sums of squares cancel when the spread is small compared with the mean.
    mean_G = sum_G / count_G.clamp(min=1)
    square_N = (values_N - mean_G[group_N]).square()
    square_G = reduce(torch.zeros_like(mean_G).index_add_(0, group_N, square_N))
    if norm.std_level == "batch":
        square_G = square_G.sum().expand_as(square_G)
    freedom_G = (count_G - 1 if norm.unbiased else count_G).clamp(min=1)
    return (square_G / freedom_G).sqrt(), mean_G
