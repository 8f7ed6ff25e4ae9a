"""Advantages of a batch, with numbers worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from areal_api.actor import PPOActorConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.algo.sequences import one_rank
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.grpo import compute_advantages
from areal_trainer.trajectory import Trajectory

PLAIN = {"reward_bias": 0.0, "reward_scaling": 1.0}


def sample(reward: float, *, group: int, completion: int = 2, finish: str = "stop") -> Trajectory:
    """A prompt of three tokens and a completion."""
    generated = [False] * 3 + [True] * completion
    return Trajectory.of_lists(
        input_ids=list(range(3 + completion)),
        loss_mask=generated,
        logprobs=[-1.0 if m else 0.0 for m in generated],
        versions=[0 if m else -1 for m in generated],
        reward=reward,
        prompt_len=3,
        finish_reason=finish,
        group=group,
    )


def advantages_of(
    batch: PackedBatch, *, max_new_tokens: int = 8, ref_logp_T: Tensor | None = None, **changes: Any
) -> tuple[list[float], dict[str, float]]:
    """Advantages of the trained tokens, and the statistics."""
    advantages_T, numbers = compute_advantages(
        batch,
        PPOActorConfig(**(PLAIN | changes)),
        GenerationHyperparameters(max_new_tokens=max_new_tokens),
        logp_T=None,
        ref_logp_T=ref_logp_T,
        reduce=one_rank,
    )
    assert (advantages_T[~batch.loss_mask_T] == 0).all()
    return advantages_T[batch.loss_mask_T].tolist(), numbers


def test_without_normalisation_every_token_gets_the_scaled_reward() -> None:
    batch = pack([sample(1.0, group=0), sample(0.0, group=0, completion=1)])
    advantages, _ = advantages_of(batch, reward_bias=-0.5, reward_scaling=10.0)
    assert advantages == [5.0, 5.0, -5.0]


def test_group_normalisation_compares_within_the_group() -> None:
    batch = pack([sample(1.0, group=4), sample(0.0, group=4), sample(7.0, group=9), sample(7.0, group=9)])
    norm = {"mean_level": "group", "std_level": None}
    assert advantages_of(batch, reward_norm=norm)[0] == [0.5, 0.5, -0.5, -0.5, 0, 0, 0, 0]


def test_advantages_are_normalised_over_tokens() -> None:
    # Three tokens of 4 and one of 0: mean 3, variance 3 of the population.
    batch = pack([sample(4.0, group=0, completion=3), sample(0.0, group=1, completion=1)])
    norm = {"mean_level": "batch", "std_level": "batch", "std_unbiased": False, "eps": 1e-9}
    assert advantages_of(batch, adv_norm=norm)[0] == pytest.approx([3**-0.5] * 3 + [-(3**0.5)])


def test_the_overlong_penalty_is_applied_before_scaling() -> None:
    # 6 of at most 8 tokens where the last 4 are penalised: −2/4 of the factor 0.8, so (1 − 0.4) · 10.
    batch = pack([sample(1.0, group=0, completion=6), sample(1.0, group=0, completion=2)])
    advantages, _ = advantages_of(
        batch, reward_scaling=10.0, overlong_reward_penalty=True, overlong_tokens=4, overlong_penalty_factor=0.8
    )
    assert advantages == pytest.approx([6.0] * 6 + [10.0] * 2)


def test_the_kl_penalty_is_part_of_the_token_rewards() -> None:
    # k1 = logp − ref = −1 + 3 = 2 a token, −0.2 of reward each; two tokens: 1 − 0.4, then 1 − 0.2.
    batch = pack([sample(1.0, group=0)])
    advantages, numbers = advantages_of(batch, kl_ctl=0.1, ref_logp_T=torch.full((5,), -3.0))
    assert advantages == pytest.approx([0.6, 0.8])
    assert numbers["grpo_actor/kl_rewards/avg"] == pytest.approx(-0.2)
    assert numbers["grpo_actor/final_reward/avg"] == pytest.approx(0.8)


def test_truncated_completions_can_be_masked() -> None:
    batch = pack([sample(1.0, group=0, finish="length"), sample(0.0, group=0), sample(2.0, group=0)])
    norm = {"mean_level": "batch", "std_level": None}
    advantages, numbers = advantages_of(batch, mask_no_eos_with_zero=True, reward_norm=norm)
    assert advantages == [0, 0, -1, -1, 1, 1]
    assert numbers["grpo_actor/no_eos_ratios/avg"] == pytest.approx(1 / 3)


def test_statistics_describe_the_raw_batch() -> None:
    batch = pack([sample(1.0, group=0, completion=4), sample(0.0, group=0, completion=1), sample(0.5, group=1)])
    _, numbers = advantages_of(batch, reward_bias=-0.5, reward_scaling=10.0)
    assert numbers["task_reward/avg"] == 0.5
    assert numbers["task_reward/max"] == 1.0
    assert numbers["grpo_actor/prompt_len/avg"] == 3.0
    assert numbers["grpo_actor/seq_len/avg"] == pytest.approx(16 / 3)
    assert numbers["grpo_actor/correct_seq_len/avg"] == 6.0
    assert numbers["grpo_actor/incorrect_seq_len/avg"] == 4.0
    assert numbers["grpo_actor/advantages/avg"] == pytest.approx((4 * 5 - 5 + 0) / 7)
    assert numbers["n_tokens"] == 16
    assert numbers["n_seqs"] == 3


def test_no_samples_give_no_advantages() -> None:
    advantages, numbers = advantages_of(pack([]), adv_norm={}, reward_norm={"mean_level": "group"})
    assert advantages == []
    assert numbers == {"n_tokens": 0.0, "n_seqs": 0.0, "grpo_actor/groups_without_signal": 0.0}


def test_groups_with_equal_rewards_have_no_signal() -> None:
    batch = pack([sample(reward, group=group) for group in (2, 5, 7, 9) for reward in (0.1 * group, 0.1 * group)])
    assert advantages_of(batch)[1]["grpo_actor/groups_without_signal"] == 1.0
    batch.rewards_B[0] += 0.5
    assert advantages_of(batch)[1]["grpo_actor/groups_without_signal"] == 0.75


def test_the_error_of_the_reward_counts_groups_rather_than_samples() -> None:
    # Mean rewards 1, 0.5 and 0: their standard deviation is 0.5, and that of their mean 0.5 ÷ √3.
    batch = pack(
        [sample(reward, group=group) for group, rewards in enumerate([(1, 1), (0, 1), (0, 0)]) for reward in rewards]
    )
    assert advantages_of(batch)[1]["grpo_actor/task_reward_error"] == pytest.approx(0.5 / 3**0.5)
    alone = pack([sample(1.0, group=0), sample(0.0, group=0)])
    assert "grpo_actor/task_reward_error" not in advantages_of(alone)[1]
