"""The status: what the API server would refuse is cut before."""

from __future__ import annotations

import pytest

from areal_api.bounds import MAX_INTEGER, MAX_STATUS_TEXT
from areal_api.progress import ProgressReport
from areal_api.status import AttemptOutcome, Condition, ExperimentStatus, shortened


@pytest.mark.parametrize("length", [0, MAX_STATUS_TEXT - 1, MAX_STATUS_TEXT])
def test_texts_within_the_limit_stay(length: int) -> None:
    assert shortened("x" * length) == "x" * length


def test_longer_texts_are_cut_with_an_ellipsis() -> None:
    cut = shortened("x" * (MAX_STATUS_TEXT + 1))
    assert (len(cut), cut[-2:]) == (MAX_STATUS_TEXT, "x…")
    long = "y" * 100_000
    assert len(Condition(type="T", status="True", message=long).message) == MAX_STATUS_TEXT
    assert len(AttemptOutcome(result="Failed", message=long).message) == MAX_STATUS_TEXT
    assert len(ExperimentStatus(message=long).message) == MAX_STATUS_TEXT


def test_every_number_of_a_report_fits_into_the_status() -> None:
    """The largest accepted report: beyond it, the report is refused, not the status."""
    ProgressReport(step=MAX_INTEGER, total_steps=MAX_INTEGER, version=MAX_INTEGER)
    for field in ("step", "total_steps", "version"):
        with pytest.raises(ValueError, match="less than or equal"):
            ProgressReport(**{"step": 1, field: MAX_INTEGER + 1})
