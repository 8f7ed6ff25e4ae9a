"""KL rewards, GAE and advantage normalisation, by numbers worked by hand."""

import math

import pytest
import torch

from areal_trainer.algo.advantages import gae, normalize_advantages
from areal_trainer.algo.kl import kl_estimate, token_rewards
from areal_trainer.algo.norm import Norm
from areal_trainer.algo.sequences import last_response_tokens, one_rank, response_counts, sequence_of_tokens

# Two sequences: prompt, answer, answer, tool, answer | prompt, answer, answer
MASK = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
CU_SEQLENS = torch.tensor([0, 5, 8], dtype=torch.int32)


def test_sequence_helpers_follow_cu_seqlens() -> None:
    assert sequence_of_tokens(CU_SEQLENS).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert response_counts(MASK, CU_SEQLENS).tolist() == [3, 2]
    positions, sequences = last_response_tokens(MASK, CU_SEQLENS)
    assert (positions.tolist(), sequences.tolist()) == ([4, 7], [0, 1])


def test_kl_estimators_by_hand() -> None:
    logp, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_estimate(logp, ref, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(logp, ref, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(logp, ref, "k3").item() == pytest.approx(0.5 - 1 + math.log(2))
    assert kl_estimate(logp, logp, "k3").item() == 0.0


def test_the_reward_is_assigned_to_the_last_token_of_the_last_turn() -> None:
    rewards, kl_rewards = token_rewards(torch.tensor([2.0, -1.0]), MASK, CU_SEQLENS)
    assert rewards.tolist() == [0, 0, 0, 0, 2, 0, 0, -1]
    assert kl_rewards.tolist() == [0] * 8


def test_the_kl_penalty_applies_to_every_response_token() -> None:
    difference = torch.tensor([9.0, 1.0, 2.0, 9.0, 3.0, 9.0, -1.0, 0.0])
    rewards, kl_rewards = token_rewards(
        torch.tensor([2.0, -1.0]),
        MASK,
        CU_SEQLENS,
        logp_T=difference,
        ref_logp_T=torch.zeros(8),
        kl_ctl=0.1,
        estimator="k1",
    )
    assert kl_rewards.tolist() == pytest.approx([0, -0.1, -0.2, 0, -0.3, 0, 0.1, 0])
    assert rewards.tolist() == pytest.approx([0, -0.1, -0.2, 0, 1.7, 0, 0.1, -1])


def test_a_sequence_without_response_tokens_gets_nothing() -> None:
    mask = torch.tensor([0, 0, 0, 1], dtype=torch.bool)
    rewards, _ = token_rewards(torch.tensor([5.0, 7.0]), mask, torch.tensor([0, 2, 4]))
    assert rewards.tolist() == [0, 0, 0, 7]
    assert gae(rewards, mask, torch.tensor([0, 2, 4])).tolist() == [0, 0, 0, 7]


def test_gae_without_discount_gives_every_token_the_reward() -> None:
    rewards, _ = token_rewards(torch.tensor([0.1, -3.3]), MASK, CU_SEQLENS)
    advantages = gae(rewards, MASK, CU_SEQLENS)
    assert advantages.tolist() == [0, *torch.tensor([0.1, 0.1, 0, 0.1, 0, -3.3, -3.3]).tolist()]


def test_gae_discounts_by_response_tokens() -> None:
    # γλ = 0.4; first sequence: rewards 1, 0, 2 over three answers, the tool token between them does not discount.
    rewards = torch.tensor([9.0, 1.0, 0.0, 9.0, 2.0, 9.0, 0.0, 1.0])
    advantages = gae(rewards, MASK, CU_SEQLENS, discount=0.8, gae_lambda=0.5)
    assert advantages.tolist() == pytest.approx([0, 1 + 0.16 * 2, 0.4 * 2, 0, 2, 0, 0.4, 1])


def test_gae_without_response_tokens_is_zero() -> None:
    assert gae(torch.zeros(3), torch.zeros(3, dtype=torch.bool), torch.tensor([0, 3])).tolist() == [0, 0, 0]


def test_advantages_are_normalised_over_tokens_not_sequences() -> None:
    # Tokens 3, 3, 3 and 0, 0: mean 1.8, variance (3·1.44 + 2·3.24)/5 = 2.16.
    advantages = torch.tensor([9.0, 3.0, 3.0, 9.0, 3.0, 9.0, 0.0, 0.0])
    result = normalize_advantages(
        advantages,
        MASK,
        CU_SEQLENS,
        torch.tensor([0, 1]),
        Norm("batch", "batch", unbiased=False),
        groups=2,
        reduce=one_rank,
    )
    high, low = 1.2 / math.sqrt(2.16), -1.8 / math.sqrt(2.16)
    assert result.tolist() == pytest.approx([0, high, high, 0, high, 0, low, low], abs=2e-5)


def test_leave_one_out_excludes_all_tokens_of_the_sample() -> None:
    result = normalize_advantages(
        torch.tensor([9.0, 3.0, 3.0, 9.0, 3.0, 9.0, 1.0, 1.0]),
        MASK,
        CU_SEQLENS,
        torch.tensor([0, 0]),
        Norm("group", None, leave_one_out=True),
        groups=1,
        reduce=one_rank,
    )
    assert result.tolist() == [0, 2, 2, 0, 2, 0, -2, -2]


def test_a_group_with_tokens_of_one_sample_gets_zero() -> None:
    # The second sample of group 0 has no response tokens.
    result = normalize_advantages(
        torch.tensor([1.0, 2.0, 0.0, 4.0, 6.0]),
        torch.tensor([1, 1, 0, 1, 1], dtype=torch.bool),
        torch.tensor([0, 2, 3, 4, 5]),
        torch.tensor([0, 0, 1, 1]),
        Norm("group", "group", unbiased=False),
        groups=2,
        reduce=one_rank,
    )
    assert result.tolist() == pytest.approx([0, 0, 0, -1, 1], abs=2e-5)
