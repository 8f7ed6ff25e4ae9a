"""Attention of many sequences in one call: sequences are padded to the longest and the padding is masked.

Shapes: B sequences, Q query tokens of all sequences, L keys of a group's longest sequence, H query heads, K key heads,
D head size, S KV cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# A group is closed if padding would make its attention matrix larger than this multiple of the unpadded entries,
_PADDING_ALLOWED = 1.5
# or larger than this many entries (4 bytes each per key head).
_MATRIX_ENTRIES = 2**22


@dataclass(frozen=True)
class PaddedGroup:
    """Sequences whose attention is computed in one call. Results of padded queries are discarded."""

    slots: Tensor  # [B * L] KV cache slots of the keys; 0 in the padding
    mask: Tensor  # [B, 1, max queries, L] added to the scores: 0 or −inf
    queries: Tensor | None  # [B, max queries] rows of the flat query tensor; None: one query per sequence, in order
    query_mask: Tensor | None  # [B, max queries] False in the padding


def group_by_length(query_lens: list[int], key_lens: list[int]) -> list[list[int]]:
    """Group sequences of similar length to limit padding. Each index appears exactly once."""
    groups: list[list[int]] = []
    order = sorted(range(len(key_lens)), key=lambda i: (key_lens[i], query_lens[i]))
    widest = useful = 0
    for i in order:
        wider = max(widest, query_lens[i])
        entries = wider * key_lens[i] * (len(groups[-1]) + 1 if groups else 1)
        useful_then = useful + query_lens[i] * key_lens[i]
        if groups and entries <= _MATRIX_ENTRIES and entries <= _PADDING_ALLOWED * useful_then:
            groups[-1].append(i)
            widest, useful = wider, useful_then
        else:
            groups.append([i])
            widest, useful = query_lens[i], query_lens[i] * key_lens[i]
    return groups


def decode_group(req_to_token: Tensor, requests_B: Tensor, key_lens_B: Tensor, dtype: torch.dtype) -> PaddedGroup:
    """All sequences of a decode step: one query each, which attends to every key of its sequence."""
    longest = int(key_lens_B.max())
    absent_BL = torch.arange(longest) >= key_lens_B.unsqueeze(1)
    slots_BL = req_to_token[requests_B, :longest].masked_fill(absent_BL, 0)
    mask_BL = torch.zeros(absent_BL.shape, dtype=dtype).masked_fill_(absent_BL, float("-inf"))
    return PaddedGroup(slots_BL.view(-1), mask_BL[:, None, None, :], None, None)


def extend_group(
    req_to_token: Tensor,
    requests_B: Tensor,
    query_lens_B: Tensor,
    key_lens_B: Tensor,
    starts_B: Tensor,
    dtype: torch.dtype,
) -> PaddedGroup:
    """Causal attention for sequences whose last `query_lens_B` tokens are new; `starts_B` are their query rows."""
    longest, widest = int(key_lens_B.max()), int(query_lens_B.max())
    keys_L, queries_q = torch.arange(longest), torch.arange(widest)
    absent_BL = keys_L >= key_lens_B.unsqueeze(1)
    slots_BL = req_to_token[requests_B, :longest].masked_fill(absent_BL, 0)
    position_Bq = (key_lens_B - query_lens_B).unsqueeze(1) + queries_q
    later_BqL = keys_L > position_Bq.unsqueeze(2)  # a padded query is past its sequence and attends to some key: no NaN
    mask = torch.zeros(later_BqL.shape, dtype=dtype).masked_fill_(later_BqL | absent_BL.unsqueeze(1), float("-inf"))
    query_mask = queries_q < query_lens_B.unsqueeze(1)
    queries = torch.where(query_mask, starts_B.unsqueeze(1) + queries_q, 0)
    return PaddedGroup(slots_BL.view(-1), mask.unsqueeze(1), queries, query_mask)


def attend(
    group: PaddedGroup, query_QHD: Tensor, keys_SKD: Tensor, values_SKD: Tensor, out_QHD: Tensor, scale: float
) -> None:
    """Write the attention output of the group's queries to their rows of `out_QHD`."""
    batch, _, _, longest = group.mask.shape
    heads, size = query_QHD.shape[1:]
    kv_heads = keys_SKD.shape[1]
    # index_select over flattened rows is 6 times as fast as indexing three axes.
    keys = keys_SKD.flatten(1).index_select(0, group.slots).view(batch, longest, kv_heads, size).transpose(1, 2)
    values = values_SKD.flatten(1).index_select(0, group.slots).view(batch, longest, kv_heads, -1).transpose(1, 2)
    if group.queries is None:
        # One query per sequence: treat the query heads that share a key head as the queries of one sequence.
        query = query_QHD.view(batch, kv_heads, heads // kv_heads, size)
        attended = scaled_dot_product_attention(query, keys, values, attn_mask=group.mask, scale=scale)
        out_QHD.copy_(attended.reshape(batch, heads, -1))
        return
    assert group.query_mask is not None
    query = query_QHD[group.queries].transpose(1, 2)
    attended = scaled_dot_product_attention(
        query, keys, values, attn_mask=group.mask, scale=scale, enable_gqa=heads != kv_heads
    )
    out_QHD[group.queries[group.query_mask]] = attended.transpose(1, 2)[group.query_mask]
