"""Rewards and their normalisation, by numbers worked by hand."""

import math
from typing import Any

import pytest
import torch

from areal_trainer.algo.filters import rewards_differ
from areal_trainer.algo.norm import Norm, dense_groups
from areal_trainer.algo.rewards import normalize_rewards, overlong_penalty, shape_rewards
from areal_trainer.algo.sequences import one_rank


def normalized(rewards: list[float], groups: list[int], **options: Any) -> list[float]:
    settings = {"mean_level": "group", "std_level": "group", "leave_one_out": False, "unbiased": False} | options
    group_B, count = dense_groups(groups, groups)
    norm = Norm(**settings)  # type: ignore[arg-type]
    return normalize_rewards(torch.tensor(rewards), group_B, norm, groups=count, reduce=one_rank).tolist()


def test_the_overlong_penalty_falls_linearly_over_the_last_tokens() -> None:
    lengths = torch.tensor([1, 80, 85, 90, 100, 250])
    penalty = overlong_penalty(lengths, max_new_tokens=100, overlong_tokens=20, factor=1.0)
    assert penalty.tolist() == pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0, -1.0])


def test_overlong_tokens_beyond_max_new_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"actor\.overlong_tokens is 200.*gconfig\.max_new_tokens \(100\)"):
        overlong_penalty(torch.tensor([1]), max_new_tokens=100, overlong_tokens=200, factor=1.0)


def test_rewards_are_shifted_then_scaled_then_clipped() -> None:
    shaped = shape_rewards(torch.tensor([1.0, 0.0, 9.0, -9.0]), bias=-0.5, scaling=10.0, clip=20.0)
    assert shaped.tolist() == [5.0, -5.0, 20.0, -20.0]


def test_group_norm_compares_within_the_group() -> None:
    # Group 7: mean 1/3, σ = √2/3. Group 9: mean 15, σ = 5.
    result = normalized([1, 10, 0, 20, 0], [7, 9, 7, 9, 7])
    assert result == pytest.approx([math.sqrt(2), -1, -math.sqrt(0.5), 1, -math.sqrt(0.5)], abs=1e-4)


def test_batch_norm_compares_with_all_samples() -> None:
    # Mean 2, σ = √2 with 1/n, √(8/3) with 1/(n − 1).
    rewards, groups = [0.0, 2.0, 2.0, 4.0], [0, 0, 1, 1]
    levels = {"mean_level": "batch", "std_level": "batch"}
    assert normalized(rewards, groups, **levels) == pytest.approx([-math.sqrt(2), 0, 0, math.sqrt(2)], abs=2e-5)
    unbiased = normalized(rewards, groups, unbiased=True, **levels)
    assert unbiased == pytest.approx([-2 / math.sqrt(8 / 3), 0, 0, 2 / math.sqrt(8 / 3)], abs=2e-5)


def test_leave_one_out_compares_with_the_others() -> None:
    # 3 − (0 + 6)/2, 0 − (3 + 6)/2, 6 − (3 + 0)/2
    assert normalized([3, 0, 6], [0, 0, 0], std_level=None, leave_one_out=True) == [0.0, -4.5, 4.5]
    assert normalized([3, 0, 6], [0, 1, 2], mean_level="batch", std_level=None, leave_one_out=True) == [0.0, -4.5, 4.5]


def test_without_levels_rewards_are_unchanged() -> None:
    assert normalized([3, 0, 6], [0, 0, 1], mean_level=None, std_level=None) == [3, 0, 6]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(
    ("mean_level", "std_level"), [("group", "group"), ("group", None), ("batch", "group"), (None, "group")]
)
def test_a_group_of_one_gets_zero_at_group_level(
    mean_level: str | None, std_level: str | None, leave_one_out: bool, unbiased: bool
) -> None:
    options = {"mean_level": mean_level, "std_level": std_level, "leave_one_out": leave_one_out, "unbiased": unbiased}
    assert normalized([1, 0, 5], [0, 0, 1], **options)[2] == 0.0


@pytest.mark.parametrize("mean_level", ["group", "batch", None])
def test_equal_rewards_are_never_divided_by_a_zero_deviation(mean_level: str | None) -> None:
    rewards = [0.1, 0.1, 0.1, 1.0, 0.0]
    result = normalized(rewards, [0, 0, 0, 1, 1], mean_level=mean_level)
    assert result[:3] == [0.0, 0.0, 0.0]
    assert max(map(abs, result)) < 3


def test_a_lost_sample_changes_no_other_group() -> None:
    whole = normalized([1, 0, 1, 1, 0, 0, 0, 1], [4, 4, 5, 5, 5, 6, 6, 6])
    lost = normalized([1, 0, 1, 0, 0, 0, 1], [4, 4, 5, 5, 6, 6, 6])
    assert lost[:2] == whole[:2]
    assert lost[4:] == whole[5:]
    assert lost[2:4] == pytest.approx([1, -1], abs=1e-4)


def test_dense_groups_are_the_same_on_every_rank() -> None:
    everything = [12, 12, 3, 40, 3]
    assert dense_groups([12, 3], everything)[0].tolist() == [1, 0]
    assert dense_groups([40, 12], everything)[0].tolist() == [2, 1]
    assert dense_groups([], everything)[1] == 3


def test_dapo_rejects_groups_whose_rewards_are_all_equal() -> None:
    assert rewards_differ([0.0, 1.0, 0.0])
    assert not rewards_differ([1.0, 1.0])
    assert not rewards_differ([0.0, 0.0, 0.0])
    assert not rewards_differ([1.0])
    assert not rewards_differ([])
