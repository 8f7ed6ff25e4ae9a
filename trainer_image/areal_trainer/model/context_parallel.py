"""Context parallelism: ranks divide the tokens of a pass, and in attention the heads (DeepSpeed-Ulysses,
https://arxiv.org/abs/2309.14509).

All ranks of a group have the same pass. Each runs the model on an equal, contiguous share of its tokens. Before
attention an all-to-all gives each rank all tokens of some heads, so segments, shared prefixes and windows are those of
the whole pass; after it another one gives back the tokens. Ranks of a tensor-parallel group divide the predictions of
their tokens, as they all have the whole hidden states.
"""

# P tokens of the pass, N trained tokens of it, M of those that this rank predicts, H heads, G heads of keys and values,
# D size of a head

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from areal_trainer.model.layout import Layout, Segment
from areal_trainer.ranks import CONTEXT, TENSOR

Attention = Callable[..., tuple[Tensor, None]]


@dataclass(frozen=True)
class SharedPass:
    """How the ranks that share their sequences divide a pass."""

    context_rank: int
    context_size: int
    tensor_rank: int
    tensor_size: int
    mesh: DeviceMesh

    @classmethod
    def of(cls, mesh: DeviceMesh) -> SharedPass:
        """By the dimensions context and tensor of ``mesh``."""
        return cls(
            mesh.get_local_rank(CONTEXT), mesh[CONTEXT].size(), mesh.get_local_rank(TENSOR), mesh[TENSOR].size(), mesh
        )

    def padded(self, layout: Layout) -> Layout:
        """The pass with an untrained segment at its end, so that the ranks' shares are equal."""
        tokens = len(layout.input_ids_P)
        missing = -tokens % self.context_size
        if missing == 0:
            return layout
        experts_PLK = layout.experts_PLK
        if experts_PLK is not None:
            experts_PLK = torch.nn.functional.pad(experts_PLK, (0, 0, 0, 0, 0, missing), value=-1)
        return replace(
            layout,
            experts_PLK=experts_PLK,
            padding=missing,
            input_ids_P=torch.cat([layout.input_ids_P, torch.zeros(missing, dtype=torch.int64)]),
            position_ids_P=torch.cat([layout.position_ids_P, torch.arange(missing)]),
            segments=[*layout.segments, Segment(tokens, missing)],
        )

    def tokens(self, layout: Layout) -> slice:
        """The tokens of this rank of a padded pass."""
        share = len(layout.input_ids_P) // self.context_size
        return slice(self.context_rank * share, (self.context_rank + 1) * share)

    def predictions(self, layout: Layout) -> Tensor:
        """The trained tokens that this rank predicts, [M] of 0 … N − 1: every one is predicted by exactly one rank."""
        mine = self.tokens(layout)
        within_N = (layout.source_N >= mine.start) & (layout.source_N < mine.stop)
        return within_N.nonzero().squeeze(1)[self.tensor_rank :: self.tensor_size]

    def joined(self, values_M: Tensor, index_M: Tensor, count: int) -> Tensor:
        """The ranks' values of their ``predictions`` as one tensor [N], the same on every rank.

        Every rank must compute the whole loss from it; the backward pass takes the gradient of this rank's part.
        """
        result: Tensor = _Joined.apply(values_M, index_M, count, self.mesh)
        return result

    def summed_gradient(self, values: Tensor) -> Tensor:
        """``values``, which the tensor-parallel ranks have alike and use for different predictions."""
        if self.tensor_size == 1:
            return values
        result: Tensor = _SummedGradient.apply(values, self.mesh.get_group(TENSOR))
        return result


def over_heads(attend: Attention) -> Attention:
    """An attention function of transformers that attends to all tokens of a pass with a share of the heads.

    With the argument ``shared``, it takes and returns a rank's share of the tokens.
    """

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        shared: SharedPass | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if shared is None or shared.context_size == 1:
            return attend(module, query, key, value, attention_mask, **others)
        group, size = shared.mesh.get_group(CONTEXT), shared.context_size
        copies = size // math.gcd(size, key.shape[1])  # fewer heads of keys and values than ranks: some have the same
        key, value = (x.repeat_interleave(copies, 1) if copies > 1 else x for x in (key, value))
        query, key, value = (exchange(x, group, split=1, join=2) for x in (query, key, value))
        result, _ = attend(module, query, key, value, attention_mask, **others)
        return exchange(result, group, split=1, join=2), None

    return attention


def exchange(x: Tensor, group: dist.ProcessGroup, *, split: int, join: int) -> Tensor:
    """Send each rank its part of dimension ``split``; join what the ranks send along dimension ``join``."""
    result: Tensor = _Exchange.apply(x, group, split, join)
    return result


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, split: int, join: int) -> Tensor:
        ctx.group, ctx.split, ctx.join = group, split, join
        return _exchanged(x, group, split, join)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _exchanged(gradients[0], ctx.group, ctx.join, ctx.split), None, None, None


def _exchanged(x: Tensor, group: dist.ProcessGroup, split: int, join: int) -> Tensor:
    sent = torch.stack(x.chunk(dist.get_world_size(group), split))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(received.unbind(0), join)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_M: Tensor, index_M: Tensor, count: int, mesh: DeviceMesh) -> Tensor:
        ctx.save_for_backward(index_M)
        result_N = values_M.new_zeros(count).index_copy_(0, index_M, values_M)
        for dimension in (CONTEXT, TENSOR):
            dist.all_reduce(result_N, group=mesh.get_group(dimension))
        return result_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (index_M,) = ctx.saved_tensors
        return gradients[0].index_select(0, index_M), None, None, None


class _SummedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
