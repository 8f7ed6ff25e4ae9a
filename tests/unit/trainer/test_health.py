"""Detection of a collapse and its precursors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from areal_trainer.health import LOOK_BACK, Health, HealthMonitor, window


def observe(rewards: list[float], *, best: float | None = None, error: float = 0.02, **stats: float) -> Health:
    """Health after steps of 32 prompts with these rewards, their standard error, and other statistics of the policy."""
    monitor = HealthMonitor(prompts=32, reward_best=best)
    others = {f"grpo_actor/{name.replace('__', '/')}": value for name, value in stats.items()}
    bounds = {"task_reward/min": 0.0, "task_reward/max": 1.0, "grpo_actor/task_reward_error": error}
    results = [monitor.observe({"task_reward/avg": reward, **bounds, **others}) for reward in rewards]
    return results[-1]


def test_a_learning_run_has_no_warnings() -> None:
    # Rewards of a synchronous run on examples/tiny.
    rewards = [0.30, 0.33, 0.25, 0.46, 0.41, 0.36, 0.45, 0.56, 0.58, 0.67, 0.72, 0.65, 0.79, 0.83, 0.79, 0.86]
    for count in range(1, len(rewards) + 1):
        health = observe(rewards[:count], behave_kl__avg=0.02, entropy__avg=0.04, grad_norm=0.3)
        assert health.warnings == {}
        assert not health.collapsed


def test_a_reward_far_below_its_best_is_a_collapse() -> None:
    # Best mean of three steps 0.4; the last three have 0.09, below a quarter of it.
    health = observe([0.4, 0.4, 0.4, 0.2, 0.1, 0.09, 0.08])
    assert health.collapsed
    assert health.reward_best == pytest.approx(0.4)
    assert health.statistics["health/relative_reward"] == pytest.approx(0.09 / 0.4)


def test_a_decline_is_a_warning() -> None:
    health = observe([0.4, 0.4, 0.4, 0.2, 0.2, 0.2])
    assert not health.collapsed
    assert health.warnings == {"declined": "the reward is 50% of its best mean over 3 steps (0.4)"}
    assert health.statistics["health/declined"] == 1.0
    assert health.statistics["health/drift"] == 0.0


def test_the_best_reward_survives_a_resume() -> None:
    assert observe([0.1, 0.1, 0.1], best=0.8).collapsed
    assert not observe([0.1, 0.1, 0.1]).collapsed


def test_a_task_without_reward_yet_has_not_collapsed() -> None:
    assert not observe([0.01, 0.02, 0.01, 0.0, 0.0, 0.0]).collapsed


@pytest.mark.parametrize(
    ("stats", "warning"),
    [
        ({"behave_kl__avg": 0.9}, "the KL from the behaviour policy is 0.9 nats per token"),
        ({"unclipped_behave_tokens__avg": 0.2}, "leave only 20% of the tokens"),
        ({"unclipped_behave_tokens__avg": 0.6, "m2po_kept_tokens__avg": 0.5}, "leave only 30% of the tokens"),
        ({"rollout_logprob_diff_current__avg": 0.5}, "servers and trainer differ by 0.5 nats"),
    ],
    ids=["kl", "masked", "masked by M2PO too", "mismatch"],
)
def test_drift_is_a_warning_before_the_reward_falls(stats: dict[str, float], warning: str) -> None:
    health = observe([0.4], **stats)
    assert not health.collapsed
    [text] = health.warnings.values()
    assert warning in text


def test_without_gradient_and_reward_the_cause_is_named() -> None:
    health = observe([0.4, 0.4, 0.4, 0.0, 0.0, 0.0], grad_norm=0.0)
    assert "the groups have equal rewards" in health.warnings["no_gradient"]


def test_a_fall_counts_only_above_its_error() -> None:
    # Over three steps the error is 0.1 ÷ √3 = 0.058 for the best mean and for the last, 0.082 for the difference, and
    # six times that is 0.49.
    assert not observe([0.45, 0.45, 0.45, 0.0, 0.0, 0.0], error=0.1).collapsed
    assert observe([0.55, 0.55, 0.55, 0.0, 0.0, 0.0], error=0.1).collapsed


def test_means_cover_96_prompts() -> None:
    assert [window(prompts) for prompts in (1, 4, 31, 32, 256)] == [96, 24, 4, 3, 3]


@pytest.mark.parametrize(("prompts", "steps"), [(2, 1000), (4, 1000), (8, 1000), (32, 1000), (256, 300)])
@pytest.mark.parametrize("solved", [0.1, 0.3, 0.5, 0.8])
def test_problems_of_different_difficulty_raise_no_false_alarm(prompts: int, steps: int, solved: float) -> None:
    # The policy solves a problem always or never, which gives the mean reward of a batch its largest scatter.
    draw = np.random.default_rng(prompts)
    monitor = HealthMonitor(prompts=prompts)
    for _ in range(steps):
        rewards = (draw.random(prompts) < solved).astype(float)
        health = monitor.observe(of_groups(rewards))
        assert "declined" not in health.warnings
        assert not health.collapsed


@pytest.mark.parametrize("prompts", [2, 4, 8, 32, 256])
def test_a_collapse_is_found_within_the_steps_of_a_mean(prompts: int) -> None:
    draw, monitor = np.random.default_rng(prompts), HealthMonitor(prompts=prompts)
    for _ in range(200):
        monitor.observe(of_groups((draw.random(prompts) < 0.5).astype(float)))
    found = [monitor.observe(of_groups(np.zeros(prompts))).collapsed for _ in range(window(prompts))]
    assert found[-1]


def of_groups(rewards: np.ndarray) -> dict[str, float]:
    """Statistics of a step whose groups have these mean rewards."""
    error = float(rewards.std(ddof=1)) / math.sqrt(len(rewards))
    bounds = {"task_reward/min": 0.0, "task_reward/max": 1.0}
    return bounds | {"task_reward/avg": float(rewards.mean()), "grpo_actor/task_reward_error": error}


def test_groups_without_signal_are_a_warning_unless_the_rewards_are_high() -> None:
    assert "no_signal" in observe([0.02], groups_without_signal=0.97).warnings
    assert observe([0.98], groups_without_signal=0.97).warnings == {}
    assert observe([0.02], groups_without_signal=0.9).warnings == {}


def observe_steps(steps: list[tuple[float, float]]) -> Health:
    """Health after steps with these rewards and behaviour KLs."""
    monitor, health = HealthMonitor(prompts=32), None
    for reward, kl in steps:
        numbers = {"task_reward/avg": reward, "task_reward/min": 0.0, "task_reward/max": 1.0}
        health = monitor.observe(numbers | {"grpo_actor/behave_kl/avg": kl, "grpo_actor/task_reward_error": 0.02})
    assert health is not None
    return health


def test_the_precursor_is_the_first_step_that_contributed_to_the_present_warnings() -> None:
    # The KL jumps in step 4. The reward falls in step 5, and its mean over steps 4 to 6 is the next warning. Both lead
    # to step 4, three steps before the collapse.
    health = observe_steps([(0.8, 0.0)] * 3 + [(0.8, 0.9), (0.1, 0.9), (0.0, 0.0), (0.0, 0.0)])
    assert health.collapsed
    assert health.precursor_age == 3


def test_an_earlier_warning_that_was_overcome_is_no_precursor() -> None:
    health = observe_steps([(0.8, 0.9)] + [(0.8, 0.0)] * 5 + [(0.8, 0.9)])
    assert health.precursor_age == 0


def test_a_precursor_is_traced_back_at_most_ten_steps() -> None:
    assert observe_steps([(0.8, 0.0)] + [(0.8, 0.9)] * 40).precursor_age == LOOK_BACK - 1


def test_a_warning_that_every_step_has_is_no_precursor() -> None:
    assert observe_steps([(0.8, 0.9)] * 9).precursor_age == 0
    assert observe_steps([(0.8, 0.9)] * 5 + [(0.1, 0.9)] * 3).precursor_age == 3
