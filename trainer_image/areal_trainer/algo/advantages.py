"""Advantages of response tokens from token rewards."""

# B sequences, T tokens, N response tokens

import torch
from torch import Tensor

from areal_trainer.algo.norm import Norm, normalize
from areal_trainer.algo.sequences import Reduce, response_counts, sequence_of_tokens


def gae(
    rewards_T: Tensor, loss_mask_T: Tensor, cu_seqlens: Tensor, *, discount: float = 1.0, gae_lambda: float = 1.0
) -> Tensor:
    """Generalised advantage estimation (arXiv:1506.02438) without a critic: A_t = Σ_k (γλ)^k · r_(t+k), float32 over T.

    k counts response tokens; prompt and tool tokens between turns are skipped and get 0. With V = 0 the TD errors are
    the rewards, so only the product γλ matters; γ = λ = 1 gives every token its sequence's reward.
    """
    counts_B = response_counts(loss_mask_T, cu_seqlens)
    index_N = loss_mask_T.nonzero().squeeze(1)
    advantages_T = torch.zeros(len(loss_mask_T), dtype=torch.float32, device=loss_mask_T.device)
    if len(index_N) == 0:
        return advantages_T
    # Suffix sums by doubling: after each iteration, sums_N[i] covers the next 2·reach tokens of its sequence.
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
    norm: Norm,
    *,
    groups: int,
    reduce: Reduce,
) -> Tensor:
    """Centre and scale over the response *tokens* of the batch or the group: see `norm.normalize`; 0 elsewhere.

    Sums are float64 and go through `reduce`, so the result does not depend on the number of ranks. Leave-one-out
    compares with the tokens of the other samples. At group level, a group with response tokens of one sample gets 0.
    """
    index_N = loss_mask_T.nonzero().squeeze(1)
    sample_N = sequence_of_tokens(cu_seqlens)[index_N]
    normalized_N = normalize(advantages_T[index_N], sample_N, group_B, norm, groups=groups, reduce=reduce)
    return torch.zeros_like(advantages_T).index_copy_(0, index_N, normalized_N)
