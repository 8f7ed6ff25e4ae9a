"""Loading and validating reward functions and their return values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from areal_trainer.reward.function import RewardError, checked_reward, function_reference, load_reward_function


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_package.reward:f", "no module 'no_such_package'"),
        ("areal_trainer.reward.gsm9k:f", "no module 'areal_trainer.reward.gsm9k'"),
        ("areal_trainer.reward.gsm8k:gsm8k_reward", "did you mean 'gsm8k_reward_fn'"),
        ("support.reward_functions:without_keywords", r"no \*\*kwargs"),
        ("support.reward_functions:os", "not a function"),
        ("gsm8k_reward_fn", "not of the form"),
    ],
)
def test_unusable_function_is_rejected_at_the_start(path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_reward_function(path)


def test_function_that_cannot_be_imported_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"reward\.processes=0"):
        function_reference(lambda **kwargs: 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1", 1j, [1.0]])
def test_only_finite_numbers_are_rewards(value: Any) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        checked_reward(value)
    assert checked_reward(1) == checked_reward(True) == 1.0


def test_error_contains_an_excerpt_of_a_long_completion() -> None:
    error = RewardError("it failed", task_id="train/3", completion="a" * 10_000 + "b")
    assert len(str(error)) < 600
    assert "train/3" in str(error)
    assert str(error).endswith("b'")
