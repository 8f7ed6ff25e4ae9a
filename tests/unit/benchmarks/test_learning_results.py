"""Figures of the benchmark of learning, by hand."""

from __future__ import annotations

import pytest

from benchmarks.learning_results import Cell, Record, interval, table

LEARNS = Record([3.0, 0.5, 1.5, 1.0, 0.5, 1.5, 1.0, 1.0], [0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.9, 0.9], staleness=1.25)
COLLAPSES = Record([1.0] * 8, [0.4, 0.5, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0], warned=4)


def test_the_confidence_interval_is_by_students_t() -> None:
    mean, half = interval([0.8, 0.9, 1.0])  # s = 0.1, t(2) = 4.303
    assert (mean, half) == (pytest.approx(0.9), pytest.approx(4.303 * 0.1 / 3**0.5))
    assert interval([0.5]) == (0.5, None)


def test_a_run_reaches_the_goal_when_its_mean_over_three_steps_does() -> None:
    # (0.8 + 0.8 + 0.9) / 3 is the first mean of at least 0.8; it ends with step 7, after 3 + 6 seconds.
    assert LEARNS.steps_to_goal == 7
    assert LEARNS.seconds_to_goal == 9.0
    assert COLLAPSES.seconds_to_goal is None
    assert LEARNS.final == pytest.approx(0.82)
    assert LEARNS.step_s == 1.0  # of all but the first


def test_a_collapse_is_a_reward_far_below_its_best() -> None:
    assert COLLAPSES.collapsed
    assert not LEARNS.collapsed
    assert not Record([1.0] * 4, [0.0] * 4).collapsed


def test_the_table_has_a_line_for_what_did_not_run() -> None:
    cells = [
        Cell("tiny", "defaults", "eta2", [LEARNS, COLLAPSES]),
        Cell("tiny", "peer", "", [], reason="peer==1.0 cannot be installed"),
    ]
    lines = table(cells).splitlines()
    assert lines[2] == "| tiny | defaults | eta2 | 2 | 0.410 ± 5.209 | 1 | 4 | 1 | 7, 9 | 1.00 | 1.25 |"
    assert lines[3] == "| tiny | peer |  | not run: peer==1.0 cannot be installed | | | | | | | |"
