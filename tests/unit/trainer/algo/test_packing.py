"""Splitting sequences over ranks, minibatches and microbatches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_trainer.algo.packing import (
    balance_by_tokens,
    equalize_microbatches,
    pack_microbatches,
    split_minibatches,
)

LENGTHS = st.lists(st.integers(0, 50), max_size=40)


def test_balancing_by_hand() -> None:
    # 9 → rank 0, 7 → 1, 5 → 1 (12), 4 → 0 (13), 3 → 1 (15)
    assert balance_by_tokens([3, 9, 4, 7, 5], 2) == [[1, 2], [0, 3, 4]]


def test_first_fit_decreasing_by_hand() -> None:
    # 6; 5; 4 joins 6; 3 joins 5; 2 joins 5 and 3
    assert pack_microbatches([3, 6, 2, 5, 4], 10) == [[1, 4], [0, 2, 3]]


def test_a_sequence_over_the_limit_is_refused_with_the_field() -> None:
    with pytest.raises(ValueError, match=r"actor\.mb_spec\.max_tokens_per_mb is 10, but a sequence has 11 tokens"):
        pack_microbatches([3, 11], 10)
    with pytest.raises(ValueError, match=r"ref\.mb_spec\.max_tokens_per_mb is 10"):
        pack_microbatches([3, 11], 10, field="ref.mb_spec.max_tokens_per_mb")


def test_the_heaviest_microbatch_is_split_first() -> None:
    lengths = [6, 5, 4, 1]
    assert equalize_microbatches([[0, 2], [1, 3]], lengths, 3) == [[0], [2], [1, 3]]
    assert equalize_microbatches([[0, 2], [1, 3]], lengths, 5) == [[0], [2], [1], [3], []]


def test_the_number_of_minibatches_is_exact() -> None:
    assert split_minibatches([5, 5], 3) == [[0], [1], []]
    assert split_minibatches([4, 1, 1, 2], 2) == [[0], [1, 2, 3]]


@given(LENGTHS, st.integers(1, 8))
def test_parts_hold_every_sequence_once_and_differ_by_at_most_one_sequence(lengths: list[int], ranks: int) -> None:
    parts = balance_by_tokens(lengths, ranks)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in parts)
    tokens = [sum(lengths[i] for i in part) for part in parts]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)
    if len(lengths) >= ranks:
        assert all(parts)
    assert parts == balance_by_tokens(lengths, ranks)


@given(LENGTHS, st.integers(50, 200), st.integers(0, 10))
def test_microbatches_respect_the_limit_and_hold_every_sequence_once(
    lengths: list[int], limit: int, extra: int
) -> None:
    bins = pack_microbatches(lengths, limit)
    assert all(bins)
    for parts in (bins, equalize_microbatches(bins, lengths, len(bins) + extra)):
        assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in part) <= limit for part in parts)
    assert len(equalize_microbatches(bins, lengths, len(bins) + extra)) == len(bins) + extra
    # First-fit leaves no two bins that could be merged.
    loads = sorted(sum(lengths[i] for i in part) for part in bins)
    assert len(loads) < 2 or loads[0] + loads[1] > limit
