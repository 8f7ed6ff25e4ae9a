"""GSM8K's reward: extraction of the final answer, and equality of answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_trainer.reward.gsm8k import (
    answers_equal,
    extract_answer,
    extract_solution,
    gsm8k_reward_fn,
    last_boxed,
    reference_answer,
)


def reward(completion: str, answer: object) -> float:
    return gsm8k_reward_fn("the prompt", completion, [1], [2], answer, task_id="test/0")


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (r"First \boxed{3}, no: \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"It is \boxed {7}", "7"),
        (r"\boxed{4} and then \boxed{", "4"),  # truncated
        (r"I put it within \boxed{}: \boxed{9}, in \boxed{}.", "9"),
        (r"\boxed{a \{ b}", r"a \{ b"),
        (r"\boxed{5} though the answer is 6", "5"),
        ("So the answer is 42.", "42"),
        ("The answer is: $1,234.50. That is all.", "$1,234.50"),
        ("The answer is 7 apples\nand more text 9", "7 apples"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("Reasoning 1 + 1.\n#### 2", "2"),
        ("#### $ 1,200 dollars", "$ 1,200 dollars"),
        ("#### -3", "-3"),
        ("The answer is twice 3.\n#### 6", "6"),
        ("The answer is 42, so she wins.", "42"),
        ("The answer is 5, or maybe 6.", "5, or maybe 6"),
        ("The answer is:\n\n5", "5"),
        ("The answer isn't 5", None),
        ("there are 5 of them", None),
        ("", None),
    ],
)
def test_final_answer_is_extracted(completion: str, found: str | None) -> None:
    assert extract_answer(completion) == found


def test_strict_solution_requires_hashes() -> None:
    assert extract_solution("48/2 = <<48/2=24>>24\n#### 1,072", method="strict") == "1072"
    assert extract_solution("it is 24", method="strict") is None
    assert extract_solution("it is 24, or $25.50", method="flexible") == "25.50"
    assert extract_solution("#### 1/2") == "1/2"
    assert extract_solution("#### −1,072 clips") == "-1072"


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
        ("72", "#### 72", 0.0),  # not marked as a final answer
    ],
)
def test_reward_is_one_for_equal_answers(completion: str, answer: object, expected: float) -> None:
    assert reward(completion, answer) == expected


@pytest.mark.parametrize("answer", ["", "   ", None])
def test_empty_reference_is_an_error(answer: object) -> None:
    with pytest.raises(ValueError, match="reference answer"):
        reward(r"\boxed{5}", answer)


def test_reference_is_a_solution_a_box_or_a_bare_answer() -> None:
    assert reference_answer("2 + 3 = 5\n#### 5") == "5"
    assert reference_answer(r"we get \boxed{x^2}") == "x^2"
    assert reference_answer(5) == "5"


def test_braces_of_a_box_are_matched() -> None:
    assert last_boxed(r"\boxed{\frac{\sqrt{3}}{2}} is it") == r"\frac{\sqrt{3}}{2}"
    assert last_boxed(r"\boxed{") is None


def test_comparing_numbers_does_not_import_math_verify() -> None:
    script = (
        "import sys; from areal_trainer.reward.gsm8k import answers_equal;"
        "assert not answers_equal('5', '6') and answers_equal('6.0', '6');"
        "assert not {'torch', 'math_verify', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_comparing_expressions_does_not_import_torch() -> None:
    script = (
        "import sys; from areal_trainer.reward.gsm8k import answers_equal;"
        r"assert answers_equal(r'2\sqrt{2}', r'\sqrt{8}');"
        "assert 'math_verify' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_equal_text_is_equal() -> None:
    assert answers_equal("Monday ", "Monday")


# The table of answers and references

TABLE = yaml.safe_load(Path(__file__).with_name("grading_cases.yaml").read_text(encoding="utf-8"))
CASES = [
    (answer, group["reference"], float(kind == "equal"))
    for group in TABLE
    for kind in ("equal", "different")
    for answer in group[kind]
]


def test_the_table_has_at_least_300_cases() -> None:
    assert len(CASES) >= 300
    assert len(CASES) == len({case[:2] for case in CASES})


@pytest.mark.parametrize(("answer", "reference", "expected"), CASES)
def test_answer_is_graded_as_in_the_table(answer: str, reference: str, expected: float) -> None:
    completions = [rf"So it is \boxed{{{answer}}}.", f"So it is that.\n#### {answer}"]
    if not any(mark in answer for mark in (", ", ". ", "; ")) and not answer.endswith("!"):
        completions.append(f"The answer is {answer}\nDone.")
    assert [reward(completion, reference) for completion in completions] == [expected] * len(completions)


# Hostile completions


def executed_lines(completion: str, reference: str) -> int:
    """Python lines executed for one reward, as a measure of work that does not depend on the machine."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace if "areal_trainer" in frame.f_code.co_filename else None

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        assert reward(completion, reference) == 0.0
    finally:
        sys.settrace(previous)
    return lines


HOSTILE = {
    "digits": "#### " + "9" * 5000,
    "boxed digits": r"\boxed{" + "9" * 5000 + "}",
    "unclosed boxes": r"\boxed{" * 4000,
    "unclosed boxes and a tower": r"\boxed{" * 4000 + r"\boxed{9^{9^{9}}}",
    "nested boxes": r"\boxed{" * 4000 + "5" + "}" * 4000,
    "braces": "{" * 100_000 + "}" * 100_000,
    "closed first": "}" * 100_000 + r"\boxed{",
    "backslashes": "\\" * 200_001,
    "1 MB of text": "answer is " * 100_000,
    "1 MB of spaces": "the answer is" + " " * 1_000_000,
    "1 MB of hashes": "#" * 1_000_000,
    "hash lines": "#### \n" * 100_000,
    "commas": "#### 1" + ",000" * 100_000,
    "fractions": r"\boxed{" + r"\frac{1}" * 1000 + "}",
    "tower": r"\boxed{9^{9^{9^{9}}}}",
    "factorials": r"\boxed{9!!!!}",
    "exponent": r"\boxed{1e999999999999}",
    "units": "#### 5" + " a" * 100_000,
    "surrogates": "\ud800" * 1000 + "#### 5",
    "zero bytes": "\0" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_work_for_a_hostile_completion_is_bounded(name: str) -> None:
    assert executed_lines(HOSTILE[name], "#### 71") < 2_000_000


def test_work_is_independent_of_the_text_before_the_window() -> None:
    tail = r"\boxed{" * 2000
    few, many = (executed_lines("answer is 3. " * count + tail, "#### 71") for count in (10_000, 80_000))
    assert many <= few * 1.01


FRAGMENTS = (
    "\\boxed{",
    "\\text{",
    "\\sqrt{",
    "\\frac",
    "\\",
    "}",
    "{",
    "(",
    ")",
    "[",
    "$",
    "####",
    "answer is",
    " ",
    "\n",
)
SYMBOLS = ("5", "9", "1,000", "-", "−", "^", ".", ",", "%", "or", "e9", "!", "/", "x", "=", "*")
fragments = st.sampled_from(FRAGMENTS + SYMBOLS)


@given(st.lists(fragments, max_size=60).map("".join) | st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_completion_gets_a_reward(completion: str) -> None:
    assert reward(completion, "#### 72") in (0.0, 1.0)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_reward_compares_values(left: int, right: int) -> None:
    assert reward(rf"\boxed{{{left:,}}}", f"#### {right}") == float(left == right)
