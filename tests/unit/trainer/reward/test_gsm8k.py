"""GSM8K's reward: what counts as the final answer, and when two answers are equal."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest

from areal_trainer.reward.gsm8k import (
    answers_equal,
    extract_answer,
    extract_solution,
    gsm8k_reward_fn,
    last_boxed,
    reference_answer,
    to_number,
)


def reward(completion: str, answer: object) -> float:
    return gsm8k_reward_fn("the prompt", completion, [1], [2], answer, task_id="test/0")


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (r"First \boxed{3}, no: \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"It is \boxed {7}", "7"),
        (r"\boxed{4} and then \boxed{", "4"),  # cut off at its length
        (r"I put it within \boxed{}: \boxed{9}, in \boxed{}.", "9"),
        (r"\boxed{a \{ b}", r"a \{ b"),
        (r"\boxed{5} though the answer is 6", "5"),
        ("So the answer is 42.", "42"),
        ("The answer is: $1,234.50. That is all.", "$1,234.50"),
        ("The answer is 7 apples\nand more text 9", "7"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("Reasoning 1 + 1.\n#### 2", "2"),
        ("#### $ 1,200 dollars", "1,200"),
        ("#### -3", "-3"),
        ("there are 5 of them", None),
        ("", None),
    ],
)
def test_final_answer_of_a_completion(completion: str, found: str | None) -> None:
    assert extract_answer(completion) == found


def test_strict_takes_only_what_follows_the_hashes() -> None:
    assert extract_solution("48/2 = <<48/2=24>>24\n#### 1,072", method="strict") == "1072"
    assert extract_solution("it is 24", method="strict") is None
    assert extract_solution("it is 24, or $25.50", method="flexible") == "25.50"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", Fraction(72)),
        ("72.00", Fraction(72)),
        ("72.", Fraction(72)),
        ("$1,200.50", Fraction(2401, 2)),
        (r"\$1{,}200", Fraction(1200)),
        (r"25\%", Fraction(25)),
        ("-.5", Fraction(-1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"5 \text{ apples}", Fraction(5)),
        ("1/0", None),
        ("1,2", None),
        ("x", None),
        ("", None),
    ],
)
def test_numbers_are_exact(text: str, value: Fraction | None) -> None:
    assert to_number(text) == value


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"\boxed{72}", "48/2 = <<48/2=24>>24 clips.\n#### 72", 1.0),
        ("so 72 in all.\n#### 72", "#### 72", 1.0),
        (r"\boxed{1,072}", "#### 1072", 1.0),
        (r"\boxed{\$18.00}", "#### 18", 1.0),
        (r"\boxed{\frac{1}{2}}", "#### 0.5", 1.0),
        (r"\boxed{5 apples}", "#### 5", 1.0),
        (r"\boxed{20\%}", "#### 20", 1.0),
        (r"\boxed{2\sqrt{2}}", r"\boxed{\sqrt{8}}", 1.0),
        (r"\boxed{x+1}", r"\boxed{1+x}", 1.0),
        (r"\boxed{72}", 72, 1.0),
        (r"\boxed{71}", "#### 72", 0.0),
        (r"\boxed{7.2}", "#### 72", 0.0),
        (r"\boxed{unknown}", "#### 72", 0.0),
        (r"\boxed{\frac{}", "#### 72", 0.0),
        (r"\boxed{\sqrt{}}", "#### 72", 0.0),
        ("72", "#### 72", 0.0),  # not marked as the final answer
    ],
)
def test_reward_is_one_where_the_answers_are_equal(completion: str, answer: object, expected: float) -> None:
    assert reward(completion, answer) == expected


@pytest.mark.parametrize("answer", ["", "   ", None])
def test_reference_without_an_answer_is_an_error_not_a_wrong_answer(answer: object) -> None:
    with pytest.raises(ValueError, match="reference answer"):
        reward(r"\boxed{5}", answer)


def test_reference_may_be_a_solution_a_box_or_the_bare_answer() -> None:
    assert reference_answer("2 + 3 = 5\n#### 5") == "5"
    assert reference_answer(r"we get \boxed{x^2}") == "x^2"
    assert reference_answer(5) == "5"


def test_box_is_matched_brace_by_brace() -> None:
    assert last_boxed(r"\boxed{\frac{\sqrt{3}}{2}} is it") == r"\frac{\sqrt{3}}{2}"
    assert last_boxed(r"\boxed{") is None


def test_two_numbers_that_differ_need_no_algebra() -> None:
    script = (
        "import sys; from areal_trainer.reward.gsm8k import answers_equal;"
        "assert not answers_equal('5', '6') and answers_equal('6.0', '6');"
        "assert not {'torch', 'math_verify', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_comparison_imports_no_torch() -> None:
    script = (
        "import sys; from areal_trainer.reward.gsm8k import answers_equal;"
        r"assert answers_equal(r'\sqrt{4}', '2');"
        "assert 'math_verify' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_equal_text_is_equal_without_being_mathematics() -> None:
    assert answers_equal("Monday ", "Monday")
