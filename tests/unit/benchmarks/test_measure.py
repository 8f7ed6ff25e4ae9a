"""Ratios, their spread and the order of measurements."""

from __future__ import annotations

from benchmarks.measure import Comparison, by_turns, spread


def test_the_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    comparison = Comparison("name", "work", "per s", [2.0, 9.0, 4.0], "baseline", [1.0, 3.0, 4.0], goal=2.0)
    assert comparison.ratios == [2.0, 3.0, 1.0]
    assert comparison.ratio == 2.0
    assert comparison.report().splitlines()[-1].endswith("2.00 (1.00–3.00), goal ≥ 2: met")


def test_a_missed_goal_is_reported() -> None:
    assert Comparison("name", "work", "per s", [1.0], "baseline", [2.0], goal=0.8).report().endswith("missed")


def test_the_sides_alternate_and_a_warm_up_round_is_discarded() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    results = by_turns(lambda: side("ours"), lambda: side("baseline"), rounds=2)
    assert order == ["ours", "baseline", "ours", "baseline", "baseline", "ours"]
    assert results == ([3.0, 6.0], [4.0, 5.0])


def test_a_single_value_has_no_range() -> None:
    assert spread([1234.5]) == "1,234"
    assert spread([1.0, 2.0, 3.0]) == "2.00 (1.00–3.00)"
