"""Timestamps of Kubernetes."""

from __future__ import annotations

import pytest

from areal_operator.clock import not_after, parse, seconds_since, show
from support.operator_objects import NOW, later


def test_timestamps_are_utc_in_whole_seconds() -> None:
    assert show(later(1.7)) == "2026-01-31T12:00:01Z"
    assert parse("2026-01-31T12:00:00Z") == NOW == parse("2026-01-31T13:00:00+01:00") == parse("2026-01-31T12:00:00")


def test_nothing_has_passed_without_a_timestamp() -> None:
    assert seconds_since(None, NOW) == 0.0
    assert seconds_since(show(NOW), later(5)) == 5.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T11:00:00Z", "2026-01-31T11:00:00Z"),
        ("2026-01-31T12:10:00Z", "2026-01-31T12:00:00Z"),
        ("nonsense", "2026-01-31T12:00:00Z"),
        (None, None),
    ],
)
def test_times_of_a_faster_clock_become_now(text: str | None, expected: str | None) -> None:
    assert not_after(text, NOW) == expected
