"""Reserves are compared by the speed of steps: numbers worked by hand, and whole comparisons."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from areal_trainer.rollout.reserve_gain import (
    EARLY,
    FIRST_PAUSE,
    HOLD,
    MEASURED,
    SETTLE,
    ReserveCeiling,
    is_useful,
    pace,
    possible_gain,
)

HELD = SETTLE + EARLY + 1  # steps until weights that wait are first compared with others


def run(ceiling: ReserveCeiling, steps: int, *, seconds: dict[int, float], wanted: int = 32) -> list[int]:
    """The level of each step, if a step at a level takes the ``seconds`` of the largest key up to it."""
    levels, now = [], 0.0
    for _ in range(steps):
        levels.append(HOLD if ceiling.holds_weights else ceiling.reserve)
        now += seconds[max(key for key in seconds if key <= levels[-1])]
        ceiling.delivered(now, late=wanted > 0, wanted=wanted, training_s=0.4)
    return levels


def test_regular_steps_have_their_pace_without_an_error() -> None:
    assert pace([1.0, 3.0, 5.0, 7.0, 9.0]) == (pytest.approx(2.0), pytest.approx(0.0))


def test_steps_that_alternate_in_length_are_no_noise() -> None:
    lengths = [0.5, 1.5] * 6
    alternating = pace(list(itertools.accumulate(lengths, initial=0.0)))
    random.Random(1).shuffle(lengths)
    shuffled = pace(list(itertools.accumulate(lengths, initial=0.0)))
    assert alternating[0] == pytest.approx(1.0, abs=0.03)
    assert alternating[1] < 0.1 < shuffled[1]


def test_the_gain_is_limited_by_the_episodes_in_flight_and_by_the_training_time() -> None:
    assert possible_gain(0, 32, 32, step_s=4.0, training_s=1.0) == pytest.approx(math.log(1.5))  # 96 ÷ 64 episodes
    assert possible_gain(0, 32, 32, step_s=1.1, training_s=1.0) == pytest.approx(math.log(1.1))
    assert possible_gain(0, 32, 32, step_s=0.9, training_s=1.0) == 0


@pytest.mark.parametrize(
    ("high", "final", "useful"),
    [
        ((0.80, 0.01), True, True),  # a gain of 0.22 of at most 0.4
        ((0.80, 0.01), False, True),
        ((0.95, 0.01), True, False),  # 0.05, less than a fifth of 0.4
        ((1.10, 0.01), False, False),
        ((0.90, 0.01), False, None),  # 0.105: clear only after more steps
        ((0.90, 0.01), True, True),
        ((0.97, 0.30), True, True),  # nothing is certain, but steps were faster
        ((1.00, 0.30), True, False),
        ((1.05, 0.30), True, False),  # nor if they were slower: samples stay fresh
        ((1.00, 0.30), False, None),
    ],
)
def test_a_reserve_is_useful_if_it_brings_a_fifth_of_what_is_possible(
    high: tuple[float, float], final: bool, useful: bool | None
) -> None:
    assert is_useful((1.0, 0.01), high, part=0.08, possible=0.4, final=final) is useful


def test_weights_wait_while_that_is_as_fast_and_the_alternative_is_tried_at_times() -> None:
    levels = run(ReserveCeiling(batch_size=32, max_reserve=32), 160, seconds={HOLD: 1.0})
    starts = [step for step in range(1, 160) if levels[step] == 8 != levels[step - 1]]
    assert starts[0] == HELD
    assert set(levels) == {HOLD, 8}
    assert len(starts) == 2
    assert starts[1] - starts[0] > FIRST_PAUSE
    assert levels.count(8) <= 2 * (SETTLE + MEASURED + 1)


def test_weights_that_wait_in_vain_do_so_no_longer_even_without_a_reserve() -> None:
    levels = run(ReserveCeiling(batch_size=32, max_reserve=0), 100, seconds={HOLD: 1.2, 0: 1.0})
    assert levels[:HELD] == [HOLD] * HELD
    assert set(levels[HELD:]) == {0}


def test_a_reserve_that_changes_nothing_is_given_up() -> None:
    levels = run(ReserveCeiling(batch_size=32, max_reserve=32), 160, seconds={HOLD: 2.0, 0: 1.0})
    first = levels.index(32)
    assert set(levels[HELD:first]) == {8}  # a quarter of a batch
    assert levels[first:].count(32) <= 2 * (SETTLE + MEASURED + 1)
    assert set(levels[first:]) == {8, 32}


def test_a_reserve_that_makes_steps_faster_is_kept() -> None:
    levels = run(ReserveCeiling(batch_size=32, max_reserve=32), 300, seconds={HOLD: 2.0, 0: 1.2, 20: 0.9, 32: 0.7})
    assert set(levels[50:80]) == {32}
    assert levels[90:].count(32) > 0.85 * 210  # smaller ones are tried at times


def test_the_smallest_useful_reserve_is_approached_from_above() -> None:
    levels = run(ReserveCeiling(batch_size=32, max_reserve=32), 230, seconds={HOLD: 2.0, 0: 1.2, 20: 0.7})
    assert set(levels[60:100]) == {32}
    assert set(levels[140:]) == {20}


def test_a_small_reserve_needs_no_comparison() -> None:
    levels = run(ReserveCeiling(batch_size=32, max_reserve=32), 100, seconds={HOLD: 2.0, 0: 1.0}, wanted=4)
    assert set(levels[HELD:]) == {8}


def test_a_trainer_that_does_not_wait_needs_no_comparison() -> None:
    assert set(run(ReserveCeiling(batch_size=32, max_reserve=32), 100, seconds={HOLD: 1.0}, wanted=0)) == {HOLD}


def test_the_ceiling_is_within_the_staleness_bound() -> None:
    assert max(run(ReserveCeiling(batch_size=32, max_reserve=0), 100, seconds={HOLD: 1.2, 0: 1.0})) == 0
    assert max(run(ReserveCeiling(batch_size=32, max_reserve=3), 100, seconds={HOLD: 1.2, 0: 1.0}, wanted=3)) == 3


def test_a_resumed_run_measures_again() -> None:
    ceiling = ReserveCeiling(batch_size=32, max_reserve=32)
    run(ceiling, HELD + 2, seconds={HOLD: 1.0})
    assert ceiling.reserve == 8
    ceiling.reset()
    assert set(run(ceiling, HELD, seconds={HOLD: 1.0})) == {HOLD}
