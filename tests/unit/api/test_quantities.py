"""Quantities have Kubernetes' complete grammar. Expected values are those of k8s.io/apimachinery's own tests."""

from __future__ import annotations

import contextlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_api.experiment import StorageSpec
from areal_api.quantities import MAX_VALUE, canonical_quantity, parse_quantity, quantity_bytes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("100m", "0.1"),
        ("1u", "0.000001"),
        ("1n", "0.000000001"),
        ("1k", "1e3"),
        ("2M", "2e6"),
        ("3G", "3e9"),
        ("4T", "4e12"),
        ("5P", "5e15"),
        ("6E", "6e18"),
        ("1Ki", "1024"),
        ("1Mi", "1048576"),
        ("1Gi", "1073741824"),
        ("1Ti", "1099511627776"),
        ("1Pi", "1125899906842624"),
        ("1Ei", "1152921504606846976"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("12e-3", "0.012"),
        (".5Gi", "536870912"),
        ("5.", "5"),
        ("+1k", "1000"),
        ("1395864371200m", "1395864371.2"),
        (2, "2"),
        (0.5, "0.5"),
    ],
)
def test_every_suffix_has_its_value(text: str | float, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    ["", "big", "-1", "1ki", "1K", "1 Gi", "Gi", ".", "1e", "1e400", "10E", "9Ei", "1Gi\n", "nan", "inf",
     "1e99", "1" * 33, "१Gi"],
)  # fmt: skip
def test_what_is_not_a_quantity_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|above|longer"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("1.5Gi", "1536Mi"),
        ("1.3Gi", "1395864371200m"),
        ("1024Gi", "1Ti"),
        ("0.5Ki", "512"),
        ("1025", "1025"),
        ("1000m", "1"),
        ("0.1", "100m"),
        ("1500M", "1500M"),
        ("1000M", "1G"),
        ("1e3", "1e3"),
        ("1000e3", "1e6"),
        ("12e6", "12e6"),
        ("0Gi", "0"),
        ("0.0000000001", "1n"),
        ("4E", "4E"),
    ],
)
def test_the_canonical_form_is_what_the_api_server_stores(text: str, stored: str) -> None:
    assert canonical_quantity(text) == stored


def test_bytes_are_rounded_up() -> None:
    assert quantity_bytes("1.3Gi") == 1395864372


NUMBERS = st.from_regex(r"[0-9]{1,6}(\.[0-9]{0,6})?|\.[0-9]{1,6}", fullmatch=True)
SUFFIXES = st.sampled_from(["", *"numkMGTPE", *(f"{letter}i" for letter in "KMGTPE"), "e3", "E-3", "e+6"])


@given(NUMBERS, SUFFIXES)
def test_the_canonical_form_keeps_the_value(number: str, suffix: str) -> None:
    try:
        value = parse_quantity(f"{number}{suffix}")
    except ValueError as error:
        if "above" not in str(error):
            raise
        return
    stored = canonical_quantity(f"{number}{suffix}")
    assert canonical_quantity(stored) == stored
    assert 0 <= parse_quantity(stored) - value < Decimal("1e-9")


@given(st.text(max_size=40))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_quantity(text) <= MAX_VALUE


def test_a_size_in_the_experiment_may_be_fractional_or_exact_to_the_byte() -> None:
    assert StorageSpec(size="1.3Gi").size == "1.3Gi"
    for size in ("1Pi", "2Ei", "1e12", "1500000000000m"):
        assert StorageSpec(size=size).size == size
    with pytest.raises(ValueError, match="'0Gi' is 0; give a size above 0"):
        StorageSpec(size="0Gi")
