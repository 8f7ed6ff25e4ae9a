"""Attention of a packed pass by PyTorch's variable-length kernel, which needs a GPU and no other package.

Queries stay packed. A segment that shares a prefix attends to the prefix and to itself: its keys are gathered, and the
kernel aligns the causal mask with the end of the keys. Without a prefix nothing is gathered.
"""

# P tokens of the pass, K keys of all segments, S segments, H heads, G heads of keys and values, D size of a head

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from areal_trainer.model.layout import Segment

NAME = "areal_varlen"
MAX_HEAD_SIZE = 256
HEAD_SIZE_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class VarlenIndex:
    """Where the queries and keys of each segment are."""

    cu_queries: Tensor  # [S + 1] int32
    cu_keys: Tensor  # [S + 1] int32
    longest_query: int
    longest_key: int
    keys_K: Tensor | None  # positions of the keys in the pass; None if no segment has a prefix

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> VarlenIndex:
        """The index of segments in the order of their tokens; together they cover the pass."""
        queries = torch.tensor([segment.length for segment in segments])
        keys = torch.tensor([segment.prefix_length + segment.length for segment in segments])
        keys_K = None
        if any(segment.prefix_length for segment in segments):
            ranges = [
                torch.arange(start, start + length)
                for s in segments
                for start, length in ((s.prefix_start, s.prefix_length), (s.start, s.length))
            ]
            keys_K = torch.cat(ranges).to(device)
        return cls(
            cu_queries=_cumulative(queries).to(device),
            cu_keys=_cumulative(keys).to(device),
            longest_query=int(queries.max()),
            longest_key=int(keys.max()),
            keys_K=keys_K,
        )


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: VarlenIndex,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: query [1, H, P, D], key and value [1, G, P, D] → [1, P, H, D].

    Raises ``ValueError`` for a model that needs softcap, sinks, a position bias or dropout, or a head of another size.
    """
    assert attention_mask is None, "the pass was laid out for another attention implementation"
    _check(query.shape[3], dropout, others)
    q_PHD, k_PGD, v_PGD = (x[0].transpose(0, 1) for x in (query, key, value))
    if segments.keys_K is not None:
        k_PGD, v_PGD = k_PGD.index_select(0, segments.keys_K), v_PGD.index_select(0, segments.keys_K)
    out_PHD = varlen_attn(
        q_PHD.contiguous(),
        k_PGD.contiguous(),
        v_PGD.contiguous(),
        segments.cu_queries,
        segments.cu_keys,
        segments.longest_query,
        segments.longest_key,
        scale=scaling,
        # (tokens to the left, tokens to the right); transformers' window includes the query itself.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out_PHD.unsqueeze(0), None


def _check(head_size: int, dropout: float, others: dict[str, Any]) -> None:
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown:
        raise ValueError(
            f"the model's attention uses {', '.join(unknown)}, which attn_impl varlen does not support; "
            "set attn_impl: eager"
        )
    if dropout:
        raise ValueError(f"attention dropout is {dropout}, which attn_impl varlen does not support; set it to 0")
    if head_size > MAX_HEAD_SIZE or head_size % HEAD_SIZE_MULTIPLE:
        raise ValueError(
            f"the model's heads have size {head_size}; attn_impl varlen takes multiples of {HEAD_SIZE_MULTIPLE} up to "
            f"{MAX_HEAD_SIZE}; set attn_impl: sdpa"
        )


def _cumulative(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
