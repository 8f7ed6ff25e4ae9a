"""Advantages of response tokens from token rewards."""

# B sequences, T tokens, N response tokens

import torch
from torch import Tensor

from areal_trainer.algo.norm import Level, normalize
from areal_trainer.algo.sequences import Reduce, response_counts, sequence_of_tokens


def gae(
    rewards_T: Tensor, loss_mask_T: Tensor, cu_seqlens: Tensor, *, discount: float = 1.0, gae_lambda: float = 1.0
) -> Tensor:
    """Generalised advantage estimation (arXiv:1506.02438) without a critic: A_t = Σ_k (γλ)^k · r_(t+k), float32 over T.

    k counts response tokens: prompt and tool tokens between two turns neither add nor discount, and get 0. With V = 0
    the TD errors are the rewards, so only the product γλ matters; γ = λ = 1 gives every token its sequence's reward.
    """
    counts_B = response_counts(loss_mask_T, cu_seqlens)
    index_N = loss_mask_T.nonzero().squeeze(1)
    advantages_T = torch.zeros(len(loss_mask_T), dtype=torch.float32, device=loss_mask_T.device)
    if len(index_N) == 0:
        return advantages_T
    # Suffix sums by doubling: after the step of `reach`, sums_N[i] holds the next 2·reach tokens of its sequence.
    sums_N = rewards_T.double()[index_N]
    ends_N = torch.repeat_interleave(counts_B.cumsum(0), counts_B)
    left_N = ends_N - torch.arange(len(index_N), device=ends_N.device)
    factor, reach, longest = discount * gae_lambda, 1, int(counts_B.max())
    while reach < longest:
        sums_N[:-reach] += torch.where(left_N[:-reach] > reach, factor**reach * sums_N[reach:], 0.0)
        reach *= 2
    advantages_T[index_N] = sums_N.float()
    return advantages_T


def normalize_advantages(
    advantages_T: Tensor,
    loss_mask_T: Tensor,
    cu_seqlens: Tensor,
    group_B: Tensor,
    *,
    groups: int,
    mean_level: Level | None,
    std_level: Level | None,
    leave_one_out: bool = False,
    unbiased: bool = True,
    reduce: Reduce,
    eps: float = 1e-5,
) -> Tensor:
    """Centre and scale over response *tokens* of the batch or the group: see `norm.normalize`; 0 off the response.

    Sums run in float64 through `reduce`, so the result does not depend on the number of ranks. Leave-one-out compares
    with the tokens of the other samples. A group with response tokens of one sample only gets 0 at group level.
    """
    index_N = loss_mask_T.nonzero().squeeze(1)
    normalized_N = normalize(
        advantages_T[index_N],
        sequence_of_tokens(cu_seqlens)[index_N],
        group_B,
        groups=groups,
        mean_level=mean_level,
        std_level=std_level,
        leave_one_out=leave_one_out,
        unbiased=unbiased,
        reduce=reduce,
        eps=eps,
    )
    return torch.zeros_like(advantages_T).index_copy_(0, index_N, normalized_N)
