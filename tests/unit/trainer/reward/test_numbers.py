"""The number grammar of final answers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_trainer.reward.numbers import MAX_DIGITS, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72.00", Fraction(72)),
        ("$1,200.50", Fraction(2401, 2)),
        (r"\$1{,}200", Fraction(1200)),
        ("-.5", Fraction(-1, 2)),
        (r"-1\frac{3}{4}", Fraction(-7, 4)),
        ("1.2e-3", Fraction(12, 10_000)),
    ],
)
def test_values_are_exact(text: str, value: Fraction) -> None:
    number = parse_number(text)
    assert number is not None
    assert number.value == value


def test_plain_text_has_no_separators_currency_or_unit() -> None:
    plain = {text: getattr(parse_number(text), "plain", None) for text in ("$1,072 each", "−25.50", "1 1/2", "3/4 cup")}
    assert plain == {"$1,072 each": "1072", "−25.50": "-25.50", "1 1/2": "1 1/2", "3/4 cup": "3/4"}


def test_digits_and_exponents_are_limited() -> None:
    assert parse_number("9" * MAX_DIGITS) is not None
    for text in ("9" * (MAX_DIGITS + 1), "9" * 5000, "1e401", "1e-401", "10^{99999999}", "1" + "0" * 10_000):
        assert parse_number(text) is None


integers = st.integers(-(10**15), 10**15)
units = st.sampled_from(["", " apples", " dollars", "%", r"\%", r"\text{ cm}", " square feet", " km/h", " Stück"])
wrappers = st.sampled_from(
    ["{}", "${}$", r"\({}\)", r"\boxed{{{}}}", "**{}**", "{}.", r"\text{{{}}}", " {} ", "x = {}"]
)


@given(integers, units, wrappers, st.booleans())
def test_every_spelling_of_an_integer_is_that_integer(value: int, unit: str, wrapper: str, grouped: bool) -> None:
    number = parse_number(wrapper.format((f"{value:,}" if grouped else str(value)) + unit))
    assert number is not None
    assert number.value == value


@given(
    st.integers(0, 10**6),
    st.integers(1, 10**4),
    st.integers(1, 10**4),
    st.sampled_from(["{} {}/{}", r"{}\frac{{{}}}{{{}}}"]),
)
def test_mixed_numbers_are_whole_plus_proper_fraction(whole: int, top: int, bottom: int, form: str) -> None:
    number = parse_number(form.format(whole, top, bottom))
    if whole > 0 and top < bottom:
        assert number is not None
        assert number.value == whole + Fraction(top, bottom)
    else:
        assert number is None


@given(
    integers, integers, st.sampled_from([" or ", " and ", ", ", " to ", "; ", r"\text{ or }", " or maybe ", " = ", ":"])
)
def test_two_numbers_are_ambiguous(left: int, right: int, between: str) -> None:
    assert parse_number(f"{left}{between}{right}") is None


@given(st.text(max_size=200) | st.text("0123456789.,-+/$%{}\\^eE xafrctimes", max_size=200))
def test_any_text_is_a_number_or_none(text: str) -> None:
    number = parse_number(text)
    assert number is None or isinstance(number.value, Fraction)
