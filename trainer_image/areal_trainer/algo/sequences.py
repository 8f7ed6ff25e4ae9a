"""Helpers for packed sequences, and sums over ranks."""

# B sequences, T tokens, N values (response tokens or samples)

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a float64 tensor over all ranks and returns it; every rank calls it with the same shape."""


def one_rank(values: Tensor) -> Tensor:
    """The `Reduce` of a single rank."""
    return values


def sequence_of_tokens(cu_seqlens: Tensor) -> Tensor:
    """Sequence index of each token: [0, 2, 3] gives [0, 0, 1]."""
    lengths_B = cu_seqlens.diff().long()
    return torch.repeat_interleave(torch.arange(len(lengths_B), device=cu_seqlens.device), lengths_B)


def response_counts(loss_mask_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Number of response tokens of each sequence, int64 of length B."""
    before = torch.nn.functional.pad(loss_mask_T.long().cumsum(0), (1, 0))
    return before[cu_seqlens.long()].diff()


def last_response_tokens(loss_mask_T: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Position of the last response token of each sequence, and the sequences; those without any are omitted."""
    counts_B = response_counts(loss_mask_T, cu_seqlens)
    sequences = counts_B.nonzero().squeeze(1)
    ends_B = counts_B.cumsum(0)
    return loss_mask_T.nonzero().squeeze(1)[ends_B[sequences] - 1], sequences
