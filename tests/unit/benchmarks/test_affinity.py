"""The share of repeated prompt tokens, which bounds what a prefix cache can hold."""

from __future__ import annotations

import pytest

from benchmarks.affinity import call_of, repeated_share


def test_a_call_repeats_the_call_before_it_and_the_first_one_what_all_share() -> None:
    # 10 of 20 tokens, then 25 of 40; the other conversation repeats 10 of 20.
    conversations = [[call_of(20, [2] * 25), call_of(40, [2] * 48)], [call_of(20, [2] * 25)]]
    assert repeated_share(conversations, shared=10) == pytest.approx(100 * (10 + 25 + 10) / (20 + 40 + 20))
