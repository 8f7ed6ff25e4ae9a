"""Detection of a collapse and its precursors."""

from __future__ import annotations

import pytest

from areal_trainer.health import LOOK_BACK, Health, HealthMonitor


def observe(rewards: list[float], *, best: float | None = None, samples: int = 256, **stats: float) -> Health:
    """Health after steps with these rewards, and other statistics of the policy."""
    monitor = HealthMonitor(reward_best=best)
    others = {f"grpo_actor/{name.replace('__', '/')}": value for name, value in stats.items()}
    bounds = {"task_reward/min": 0.0, "task_reward/max": 1.0, "n_seqs": float(samples)}
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


def test_small_batches_raise_no_false_alarm() -> None:
    # Three steps of two samples: mean 1, then 0.
    assert not observe([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], samples=2).collapsed
    assert observe([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], samples=64).collapsed


def test_groups_without_signal_are_a_warning_unless_the_rewards_are_high() -> None:
    assert "no_signal" in observe([0.02], groups_without_signal=0.97).warnings
    assert observe([0.98], groups_without_signal=0.97).warnings == {}
    assert observe([0.02], groups_without_signal=0.9).warnings == {}


def observe_steps(steps: list[tuple[float, float]]) -> Health:
    """Health after steps with these rewards and behaviour KLs."""
    monitor, health = HealthMonitor(), None
    for reward, kl in steps:
        numbers = {"task_reward/avg": reward, "task_reward/min": 0.0, "task_reward/max": 1.0, "n_seqs": 256.0}
        health = monitor.observe(numbers | {"grpo_actor/behave_kl/avg": kl})
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
