"""Second-moment trust policy optimisation (M2PO, arXiv:2510.01161): masking of stale tokens."""

# T tokens; 256 buckets for each of the four bytes of a float32

import torch
from torch import Tensor

from areal_trainer.algo.sequences import Reduce

_BUCKETS = 256


def second_moment_mask(
    prox_logp_T: Tensor, behav_logp_T: Tensor, loss_mask_T: Tensor, *, threshold: float, reduce: Reduce
) -> Tensor:
    """Select the response tokens to train on.

    Masks the tokens with the largest m = (prox_logp − behav_logp)² until the mean of m over the rest, over all ranks,
    is below `threshold`. Tokens of equal m are masked together; if even the smallest m reaches the threshold, all are.
    Masked tokens stay in the denominator of the loss. Call it per minibatch, before the split into microbatches.
    """
    moments_N = (prox_logp_T.float() - behav_logp_T.float())[loss_mask_T].square()
    bits_N = moments_N.contiguous().view(torch.int32).long()
    limit = _smallest_masked(moments_N, bits_N, threshold, reduce)
    kept_T = torch.zeros_like(loss_mask_T)
    kept_T[loss_mask_T] = bits_N < limit
    return kept_T


def _smallest_masked(moments_N: Tensor, bits_N: Tensor, threshold: float, reduce: Reduce) -> int:
    # The mean of all m up to a bound grows with the bound, and non-negative floats are ordered like their bits. So four
    # rounds of 256 sums over all ranks find the exact bound, byte by byte, without gathering tokens.
    prefix, below = 0, moments_N.new_zeros(2, dtype=torch.float64)
    for shift in (24, 16, 8, 0):
        inside_N = bits_N >> (shift + 8) == prefix
        moments = moments_N[inside_N].double()
        sums = torch.zeros(_BUCKETS, 2, dtype=torch.float64, device=moments_N.device)
        bucket = (bits_N[inside_N] >> shift) & (_BUCKETS - 1)
        sums = reduce(sums.index_add_(0, bucket, torch.stack([torch.ones_like(moments), moments], dim=1)))
        up_to = sums.cumsum(0) + below
        over = ((up_to[:, 0] > 0) & (up_to[:, 1] >= threshold * up_to[:, 0])).nonzero()
        if len(over) == 0:
            return (prefix + 1) << (shift + 8)
        first = int(over[0])
        below = up_to[first - 1] if first > 0 else below
        prefix = prefix << 8 | first
    return prefix
