"""Names of the warnings about a policy."""

from __future__ import annotations

from areal_api.health import DECLINED, DRIFT, PREFIX, WARNINGS, describe, warnings_of


def test_warnings_are_found_in_a_line_of_statistics() -> None:
    assert warnings_of({"health/drift": 1.0, "health/masked": 0.0, "health/other": 1.0, "reward": 1.0}) == ("drift",)
    assert warnings_of({f"{PREFIX}{name}": 1.0 for name in WARNINGS}) == tuple(WARNINGS)


def test_a_description_has_the_text_of_every_known_warning() -> None:
    assert describe([DECLINED, DRIFT, "unknown"]) == f"{WARNINGS[DRIFT]}; {WARNINGS[DECLINED]}"
    assert describe([]) == ""
