"""The largest number of tokens that fits."""

from __future__ import annotations

import pytest

from areal_api.sizing.fixes import largest_that_fits


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (20_000, 10_000),  # everything fits
        (5_000, 4_096),  # rounded down to a multiple of 1,024
        (1_100, 1_050),  # rounding would go below the least
    ],
)
def test_the_largest_number_is_found_and_rounded(bound: int, expected: int) -> None:
    assert largest_that_fits(lambda n: n <= bound, 1_050, 10_000) == expected
