from __future__ import annotations

import pytest

from examples.calculator.calculator import reward_of, value_of


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (" 5 * 3 - 4 ", "11"),
        ("(2+3)*-4", "-20"),
        ("1/4", "0.25"),
        *((wrong, "error") for wrong in ("1/0", "__import__('os')", "9" * 201, "(" * 150, "2**9", "1 +", "True")),
    ],
)
def test_the_calculator_knows_arithmetic_and_nothing_else(expression: str, value: str) -> None:
    assert value_of(expression) == value


@pytest.mark.parametrize(("answer", "reward"), [("#### 12", 1.0), ("#### 2 #### 12", 1.0), ("12", 0.0), ("####", 0.0)])
def test_the_last_number_after_the_marks_is_the_answer(answer: str, reward: float) -> None:
    assert reward_of(answer, "4 * 3 = 12.\n#### 12") == reward
