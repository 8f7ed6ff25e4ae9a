"""Means over problems, their intervals, and pass@k."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_api.estimates import estimate, pass_at, reported_k


def test_the_interval_is_that_of_the_mean_of_independent_problems() -> None:
    found = estimate([0.0, 1.0, 1.0, 1.0])
    assert found.mean == 0.75
    # s = 0.5, √n = 2
    assert found.half_width == pytest.approx(1.959964 * 0.5 / 2)


def test_one_problem_has_no_interval() -> None:
    assert estimate([0.5]).half_width is None


def test_an_estimate_needs_a_problem() -> None:
    with pytest.raises(ValueError, match="no problem"):
        estimate([])


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_solved_sample(samples: int, data: st.DataObject) -> None:
    solved = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    subsets = list(itertools.combinations([True] * solved + [False] * (samples - solved), k))
    assert pass_at(k, samples=samples, solved=solved) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("k", "samples", "solved"), [(0, 4, 1), (5, 4, 1), (1, 4, 5), (1, 4, -1)])
def test_impossible_counts_are_refused(k: int, samples: int, solved: int) -> None:
    with pytest.raises(ValueError, match="k is"):
        pass_at(k, samples=samples, solved=solved)


@pytest.mark.parametrize(("samples", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_powers_of_two_and_all_samples_are_reported(samples: int, expected: list[int]) -> None:
    assert reported_k(samples) == expected
