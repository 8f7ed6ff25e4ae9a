"""Exact evaluation of arithmetic in final answers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_trainer.reward.arithmetic import MAX_BITS, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("36+36", Fraction(72)),
        (r"8 \cdot 9", Fraction(72)),
        ("2 + 3 * 4", Fraction(14)),
        ("-(2 - 5)", Fraction(3)),
        (r"\frac{1}{\frac{2}{3}}", Fraction(3, 2)),
        (r"\sqrt{4}", Fraction(2)),
        (r"\sqrt{\frac{1}{4}}", Fraction(1, 2)),
        ("2^{10}", Fraction(1024)),
        ("1,000 - 1", Fraction(999)),
        (r"10 \div 4", Fraction(5, 2)),
        ("1/2/3", None),
        ("1--1", None),
        ("1-", None),
        ("(1", None),
        ("2(3)", None),
        (r"\sqrt{2}", None),
        (r"\sqrt{-4}", None),
        ("1/0", None),
        ("9^{9^{9}}", None),
        ("9^{17}", None),
        ("x+1", None),
        ("1 or 2", None),
        ("", None),
    ],
)
def test_value(text: str, value: Fraction | None) -> None:
    assert evaluate(text) == value


arithmetic = st.recursive(
    st.integers(0, 10**12).map(str),
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from("+-*/^"), parts).map("".join),
        parts.map("({})".format),
        st.tuples(parts, parts).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
        parts.map(r"\sqrt{{{}}}".format),
        parts.map("2^{{{}}}".format),
    ),
    max_leaves=30,
)


@given(arithmetic | st.text(r"0123456789+-*/^(){}\frac ", max_size=200))
def test_any_expression_has_a_value_of_bounded_size_or_none(text: str) -> None:
    value = evaluate(text)
    assert value is None or value.numerator.bit_length() <= MAX_BITS
