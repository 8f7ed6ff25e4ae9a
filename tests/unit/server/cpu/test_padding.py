"""Padded attention over a paged KV cache against one plain softmax a query."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_server.cpu.padding import attend, decode_group, extend_group, group_by_length

HEADS, KV_HEADS, SIZE, SLOTS, CONTEXT = 4, 2, 8, 200, 40
SCALE = 1 / math.sqrt(SIZE)


def cache(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values and, for each request, the slots of its tokens; what no token owns is not a number."""
    generator = torch.Generator().manual_seed(0)
    slots = torch.randperm(SLOTS - 1, generator=generator) + 1
    keys = torch.full((SLOTS, KV_HEADS, SIZE), float("nan"))
    values = keys.clone()
    table = torch.full((len(lengths), CONTEXT), SLOTS - 1)
    keys[0] = values[0] = 0.0  # SGLang keeps slot 0 for padding
    taken = 0
    for i, length in enumerate(lengths):
        own = slots[taken : taken + length]
        taken += length
        table[i, :length] = own
        keys[own] = torch.randn(length, KV_HEADS, SIZE, generator=generator)
        values[own] = torch.randn(length, KV_HEADS, SIZE, generator=generator)
    return keys, values, table


def plain(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """One query token, [H, D], over the keys in `slots`."""
    out = torch.empty(HEADS, SIZE)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        weights = torch.softmax(keys[slots, shared] @ query[head] * SCALE, dim=0)
        out[head] = weights @ values[slots, shared]
    return out


def test_decoding_sees_every_key_of_its_own_sequence_and_no_other() -> None:
    lengths = [1, 7, 3, 40]
    keys, values, table = cache(lengths)
    query = torch.randn(4, HEADS, SIZE, generator=torch.Generator().manual_seed(1))
    out = torch.empty_like(query)
    requests = torch.tensor([2, 0, 3, 1])
    group = decode_group(table, requests, torch.tensor([lengths[r] for r in requests]), torch.float32)
    attend(group, query, keys, values, out, SCALE)
    for i, r in enumerate(requests.tolist()):
        expected = plain(query[i], keys, values, table[r, : lengths[r]])
        torch.testing.assert_close(out[i], expected, atol=1e-6, rtol=0)


def test_new_tokens_see_the_cached_beginning_and_what_came_before_them() -> None:
    """Sequences of 5, 12 and 30 tokens, of which the last 5 (no beginning cached), 1 and 9 are new."""
    key_lens, query_lens = [5, 12, 30], [5, 1, 9]
    keys, values, table = cache(key_lens)
    query = torch.randn(15, HEADS, SIZE, generator=torch.Generator().manual_seed(1))
    out = torch.full_like(query, float("nan"))
    starts = torch.tensor([0, 5, 6])
    for members in ([0, 2], [1]):
        i = torch.tensor(members)
        queries, lens = torch.tensor(query_lens)[i], torch.tensor(key_lens)[i]
        group = extend_group(table, i, queries, lens, starts[i], torch.float32)
        attend(group, query, keys, values, out, SCALE)
    for r in range(3):
        for j in range(query_lens[r]):
            seen = table[r, : key_lens[r] - query_lens[r] + j + 1]
            expected = plain(query[starts[r] + j], keys, values, seen)
            torch.testing.assert_close(out[starts[r] + j], expected, atol=1e-6, rtol=0)


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 2000)), min_size=1, max_size=60))
def test_groups_hold_every_sequence_once_and_waste_little(sequences: list[tuple[int, int]]) -> None:
    query_lens = [new for new, _ in sequences]
    key_lens = [new + cached for new, cached in sequences]
    groups = group_by_length(query_lens, key_lens)
    assert sorted(i for group in groups for i in group) == list(range(len(sequences)))
    for group in groups:
        padded = max(query_lens[i] for i in group) * max(key_lens[i] for i in group) * len(group)
        useful = sum(query_lens[i] * key_lens[i] for i in group)
        assert len(group) == 1 or (padded <= 1.5 * useful and padded <= 2**22)


def test_equal_prompts_are_one_group() -> None:
    assert group_by_length([1] * 256, [49] * 256) == [list(range(256))]


@pytest.mark.parametrize("count", [1, 8])
def test_one_long_prompt_does_not_pad_short_ones(count: int) -> None:
    groups = group_by_length([10] * count + [1000], [10] * count + [1000])
    assert [len(group) for group in groups] == [count, 1]
