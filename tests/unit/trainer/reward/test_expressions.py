"""Comparison of expressions by math-verify, and its bounds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from areal_trainer.reward import expressions
from areal_trainer.reward.expressions import expressions_equal, is_bounded


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"\frac{x+1}{2}", r"\frac{1+x}{2}", True),
        ("[0,1)", "[0, 1)", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        (r"2\pi", r"2.0\pi", True),
        (r"2\pi", r"3\pi", False),
    ],
)
def test_expressions_are_compared_exactly(answer: str, reference: str, expected: bool) -> None:
    assert expressions_equal(answer, reference) is expected


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9}}",
        "9^9^9",
        "9**9**9",
        "((9^9)^9)^9",
        "9^{999}",
        "9^(9)",
        "1" * 13,
        "(" * 7 + ")" * 7,
        "((x)",
        r"\text{17 or }18",
        r"\sum x",
        r"\int x",
        r"\binom{9}{3}",
        "20!",
        "abc",
        "x" * 201,
        "",
        "5²",
        "x..",
        "x--1",
        "x+",
        "1:x",
        "\x00",
    ],
)
def test_unbounded_expressions_are_rejected(text: str) -> None:
    assert not is_bounded(text)
    assert not expressions_equal(text, "1")


def test_comparison_stops_after_too_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "MAX_CALLS", 1000)
    trace = sys.gettrace()
    assert not expressions_equal("(a+b+c)^4", "(a+b+d)^4")
    assert sys.gettrace() is trace


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"[1, \infty)", r"\left[1,\infty\right)"),
        (r"\sin(\pi/4)", r"\frac{\sqrt{2}}{2}"),
        ("x^2+1", "1+x^2"),
    ],
)
def test_the_first_comparison_of_a_process_is_like_the_later_ones(answer: str, reference: str) -> None:
    script = (
        "from areal_trainer.reward.expressions import expressions_equal\n"
        f"print(expressions_equal({answer!r}, {reference!r}), expressions_equal({answer!r}, {reference!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True", "True"]
