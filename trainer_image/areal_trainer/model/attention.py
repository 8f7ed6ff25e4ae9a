"""Attention of a packed pass, segment by segment, with PyTorch's scaled_dot_product_attention.

Queries and keys of segments of similar length are gathered into padded rectangles, one call each; the rest of the model
works on packed tokens. No mask spans two sequences, so packed sequences cannot attend to each other.
"""

# P tokens of the pass, R segments of a bucket, Q queries and K keys of its rectangle, H heads, G heads of keys and
# values, D size of a head, E = H · D or G · D

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from areal_trainer.model.layout import Segment

NAME = "areal_segments"
_MAX_LENGTH_RATIO = 1.3  # longest ÷ shortest query of a bucket; bounds the padding


@dataclass(frozen=True, eq=False)
class Bucket:
    """Segments of similar length in one rectangle. Rows are padded by repeating the segment's last token."""

    queries_RQ: Tensor
    keys_RK: Tensor
    prefix_R: Tensor  # length of the prefix: key k is the k-th token of the sequence, query q the (prefix + q)-th
    has_prefix: bool
    _masks: dict[tuple[int | None, torch.dtype], Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [R, 1, Q, K]; None for plain causal attention. ``window``: tokens visible to a query, itself
        included."""
        if window is not None and window >= self.keys_RK.shape[1]:
            window = None
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = self._make_mask(window, dtype)
        return self._masks[window, dtype]

    def _make_mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        if not self.has_prefix and window is None:
            return None
        device = self.keys_RK.device
        key_K = torch.arange(self.keys_RK.shape[1], device=device)
        query_RQ1 = (self.prefix_R[:, None] + torch.arange(self.queries_RQ.shape[1], device=device)).unsqueeze(2)
        allowed_RQK = key_K <= query_RQ1
        if window is not None:
            allowed_RQK &= query_RQ1 - key_K < window
        additive = torch.zeros(allowed_RQK.shape, dtype=dtype, device=device)
        return additive.masked_fill_(~allowed_RQK, float("-inf")).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class SegmentIndex:
    """The buckets of a pass, and the position of each token of the pass in their concatenated results."""

    buckets: list[Bucket]
    result_P: Tensor

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> SegmentIndex:
        """Bucket segments by length, separately with and without a prefix."""
        buckets: list[Bucket] = []
        result_P = torch.empty(sum(segment.length for segment in segments), dtype=torch.int64)
        size = 0
        for group in _by_length(segments):
            start_R, length_R, prefix_start_R, prefix_R = torch.tensor(
                [[s.start, s.length, s.prefix_start, s.prefix_length] for s in group]
            ).unbind(1)
            query_Q = torch.arange(int(length_R.max()))
            own_RQ = start_R[:, None] + torch.minimum(query_Q, length_R[:, None] - 1)
            key_K = torch.arange(int((prefix_R + length_R).max()))
            after_RK = torch.minimum(key_K - prefix_R[:, None], length_R[:, None] - 1)
            keys_RK = torch.where(after_RK < 0, prefix_start_R[:, None] + key_K, start_R[:, None] + after_RK)
            real_RQ = query_Q < length_R[:, None]
            result_P[own_RQ[real_RQ]] = (size + torch.arange(own_RQ.numel()).view_as(own_RQ))[real_RQ]
            size += own_RQ.numel()
            has_prefix = group[0].prefix_length > 0
            buckets.append(Bucket(own_RQ.to(device), keys_RK.to(device), prefix_R.to(device), has_prefix))
        return cls(buckets, result_P.to(device))


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: SegmentIndex,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: query [1, H, P, D], key and value [1, G, P, D] → [1, P, H, D].

    Raises ``ValueError`` for a model that needs softcap, sinks or a position bias.
    """
    assert attention_mask is None, "the pass was laid out for another attention implementation"
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown:
        raise ValueError(
            f"the model's attention uses {', '.join(unknown)}, which attn_impl sdpa does not support; "
            "set attn_impl: eager"
        )
    heads, size = query.shape[1], query.shape[3]
    q_PE, k_PE, v_PE = (x[0].transpose(0, 1).flatten(1) for x in (query, key, value))
    results = []
    for bucket in segments.buckets:
        q = _rows(q_PE, bucket.queries_RQ, size)
        k, v = _rows(k_PE, bucket.keys_RK, size), _rows(v_PE, bucket.keys_RK, size)
        mask = bucket.mask(sliding_window, query.dtype)
        grouped = k.shape[1] != heads
        if grouped and mask is not None and q.device.type != "cpu":
            # CUDA's masked kernels do not support grouped heads; PyTorch would fall back to its slow implementation.
            k, v = k.repeat_interleave(heads // k.shape[1], 1), v.repeat_interleave(heads // v.shape[1], 1)
            grouped = False
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout, enable_gqa=grouped
        )
        results.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    result_PE = F.embedding(segments.result_P, torch.cat(results))
    return result_PE.unflatten(1, (heads, -1)).unsqueeze(0), None


def _rows(x_PE: Tensor, index_RS: Tensor, size: int) -> Tensor:
    # Unlike the backward pass of indexing, that of an embedding adds whole rows.
    return F.embedding(index_RS, x_PE).unflatten(2, (-1, size)).transpose(1, 2)


def _by_length(segments: Sequence[Segment]) -> list[list[Segment]]:
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: (s.prefix_length > 0, s.length)):
        first = groups[-1][0] if groups else None
        same_kind = first is not None and (first.prefix_length > 0) == (segment.prefix_length > 0)
        if first is not None and same_kind and segment.length <= _MAX_LENGTH_RATIO * first.length + 1:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups
