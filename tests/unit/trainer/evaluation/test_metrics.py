"""Statistics of an evaluation against numbers worked by hand."""

from __future__ import annotations

import pytest

from areal_trainer.evaluation.metrics import SetResult, majority_reward, statistics_of
from areal_trainer.trajectory import Trajectory


def sample(reward: float, *, finish_reason: str = "stop", tokens: int = 2) -> Trajectory:
    return Trajectory.of_lists(
        input_ids=[1] * (tokens + 1),
        loss_mask=[False] + [True] * tokens,
        logprobs=[0.0] * (tokens + 1),
        versions=[-1] + [0] * tokens,
        reward=reward,
        prompt_len=1,
        finish_reason=finish_reason,
    )


PROBLEMS = [[sample(1.0), sample(0.0)], [sample(0.0), sample(0.0, finish_reason="length", tokens=6)]]


def test_statistics_of_two_problems() -> None:
    result = SetResult("valid", PROBLEMS, answers=[["7", "8"], ["1", "1"]])
    found = statistics_of(result, samples=2, solved_reward=1.0)
    assert found["eval-rollout/reward"] == 0.25
    assert found["eval-rollout/pass@1"] == 0.25  # (1/2 + 0) / 2
    assert found["eval-rollout/pass@2"] == 0.5  # the first problem
    assert found["eval-rollout/maj@2"] == 0.5  # 7 wins, as the earlier of two
    assert found["eval-rollout/completion_len"] == 3.0
    assert found["eval-rollout/truncated"] == 0.25
    assert found["eval-rollout/pass@2_ci95"] == pytest.approx(1.959964 * 0.5**0.5 / 2**0.5)


def test_a_further_set_has_its_name_in_its_statistics() -> None:
    found = statistics_of(SetResult("math", PROBLEMS, answers=None), samples=2, solved_reward=0.0)
    assert all(name.startswith("eval-rollout/math/") for name in found)
    assert "eval-rollout/math/maj@2" not in found  # the reward has no final answers
    assert found["eval-rollout/math/pass@1"] == 1.0  # every reward is at least 0


def test_one_sample_has_no_pass_at_k() -> None:
    found = statistics_of(SetResult("valid", [[sample(1.0)]], answers=None), samples=1, solved_reward=1.0)
    assert set(found) == {f"eval-rollout/{name}" for name in ("reward", "completion_len", "truncated")}


def test_a_problem_that_lost_a_sample_counts_in_the_mean_alone() -> None:
    result = SetResult("valid", [PROBLEMS[0], [sample(1.0)]], answers=None)
    found = statistics_of(result, samples=2, solved_reward=1.0)
    assert found["eval-rollout/reward"] == 0.75
    assert found["eval-rollout/pass@2"] == 1.0


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(["a", "b", "b"], 0.5), ([None, None, "c"], 1.0), ([None, None, None], float("-inf")), (["a", "b", "c"], 0.0)],
)
def test_the_most_frequent_answer_wins(answers: list[str | None], expected: float) -> None:
    problem = [sample(0.0), sample(0.5), sample(1.0)]
    assert majority_reward(problem, answers) == expected
