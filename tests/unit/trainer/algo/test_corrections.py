"""Corrections for stale samples, with numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_trainer.algo.corrections import (
    Correction,
    advantage_scale,
    behaviour_kl,
    behaviour_kl_penalty,
    binary_kl,
    importance_weights,
    trust_region_scale,
)
from areal_trainer.algo.loss import ppo_loss

# Probabilities of four tokens in two sequences: w = 4, 0.25 | 1.5, 0.5.
BEHAVIOUR = torch.tensor([0.1, 0.8, 0.4, 0.02]).log()
PROXIMAL = torch.tensor([0.4, 0.2, 0.6, 0.01]).log()
COUNTS = torch.tensor([2, 2])


def corrected(cap: float | None = None, advantages: float = 1.0, **settings: Any) -> tuple[list[float], list[bool]]:
    found = importance_weights(
        PROXIMAL, BEHAVIOUR, PROXIMAL, torch.full((4,), advantages), COUNTS, cap=cap, correction=Correction(**settings)
    )
    return found.weight_N.tolist(), found.kept_N.tolist()


def test_without_corrections_all_tokens_are_weighted() -> None:
    weight, kept = corrected()
    assert weight == pytest.approx([4.0, 0.25, 1.5, 0.5])
    assert all(kept)


def test_icepop_drops_weights_outside_of_its_interval() -> None:
    assert corrected(cap=3.0, min_weight=0.4)[1] == [False, False, True, True]


def test_truncation_limits_weights_from_both_sides() -> None:
    weight, kept = corrected(cap=2.0, min_weight=0.4, truncate=True)
    assert weight == pytest.approx([2.0, 0.4, 1.5, 0.5])
    assert all(kept)


def test_weights_of_sequences_are_geometric_means() -> None:
    # √(4 · 0.25) = 1 and √(1.5 · 0.5) = 0.866.
    weight, kept = corrected(cap=2.0, min_weight=0.9, weight_level="sequence")
    assert weight == pytest.approx([1.0, 1.0, math.sqrt(0.75), math.sqrt(0.75)])
    assert kept == [True, True, False, False]


def test_the_binary_kl_is_that_of_two_coins_in_its_larger_direction() -> None:
    # p = 0.4, q = 0.1: 0.4 ln 4 + 0.6 ln (2/3) = 0.311; the other direction, 0.1 ln 0.25 + 0.9 ln 1.5, is 0.226.
    # p = 0.2, q = 0.8: 0.6 ln 4 = 0.832 in both. A certain token that became impossible: ln 1e8 nats, and finite.
    divergence = binary_kl(PROXIMAL[:2], BEHAVIOUR[:2])
    assert divergence.tolist() == pytest.approx([0.3112, 0.8318], abs=1e-4)
    assert binary_kl(torch.tensor([-100.0]), torch.tensor([0.0])).item() == pytest.approx(math.log(1e8), rel=1e-6)
    assert binary_kl(BEHAVIOUR, BEHAVIOUR).tolist() == [0.0] * 4


def test_kpop_drops_tokens_by_their_binary_kl() -> None:
    assert corrected(max_binary_kl=0.3)[1] == [False, False, True, True]
    assert corrected(max_binary_kl=0.32)[1] == [True, False, True, True]


def test_truncation_limits_weights_and_keeps_their_tokens() -> None:
    weight, kept = corrected(cap=2.0, truncate=True)
    assert weight == pytest.approx([2.0, 0.25, 1.5, 0.5])
    assert all(kept)


def test_the_probability_mask_ignores_ratios_of_unlikely_tokens() -> None:
    # Differences: 0.3, 0.6, 0.2, 0.01.
    assert corrected(max_prob_diff=0.25)[1] == [False, False, True, True]
    assert corrected(max_prob_diff=0.5)[1] == [True, False, True, True]


def test_the_sequence_mask_uses_the_geometric_mean() -> None:
    # √(4 · 0.25) = 1 and √(1.5 · 0.5) = 0.866, whose inverse is 1.155.
    assert corrected(max_sequence_weight=1.1)[1] == [True, True, False, False]
    assert corrected(max_sequence_weight=1.2)[1] == [True] * 4


def test_clipping_against_the_behaviour_policy_depends_on_the_advantage() -> None:
    assert corrected(eps_clip=0.6)[1] == [False, True, True, True]
    assert corrected(eps_clip=0.6, advantages=-1.0)[1] == [True, False, True, True]


def test_dropped_tokens_have_no_loss_and_are_counted() -> None:
    logp = PROXIMAL.clone().requires_grad_()
    loss, stats = ppo_loss(
        logp,
        prox_logp_T=PROXIMAL,
        behav_logp_T=BEHAVIOUR,
        advantages_T=torch.ones(4),
        loss_mask_T=torch.ones(4, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, 2, 4]),
        eps_clip=0.2,
        behav_imp_weight_cap=3.0,
        correction=Correction(min_weight=0.4),
    )
    assert loss.item() == pytest.approx(-1.5 - 0.5)
    assert torch.autograd.grad(loss, logp)[0].tolist() == pytest.approx([0, 0, -1.5, -0.5])
    assert stats["unclipped_behave_tokens"][:2].tolist() == [2, 4]


def test_truncated_weights_are_counted() -> None:
    # w = 4, 0.25 | 1.5, 0.5 is limited to [0.4, 2].
    loss, stats = ppo_loss(
        PROXIMAL.clone().requires_grad_(),
        prox_logp_T=PROXIMAL,
        behav_logp_T=BEHAVIOUR,
        advantages_T=torch.ones(4),
        loss_mask_T=torch.ones(4, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, 2, 4]),
        eps_clip=0.2,
        behav_imp_weight_cap=2.0,
        correction=Correction(min_weight=0.4, truncate=True),
    )
    assert loss.item() == pytest.approx(-2.0 - 0.4 - 1.5 - 0.5)
    assert stats["truncated_behave_tokens"][:2].tolist() == [2, 4]
    assert stats["unclipped_behave_tokens"][:2].tolist() == [4, 4]


def test_the_kl_is_estimated_by_k3() -> None:
    # d = ln 4: 4 − 1 − ln 4; d = −ln 4: 1/4 − 1 + ln 4.
    kl = behaviour_kl(torch.tensor([0.0, math.log(0.25)]), torch.tensor([math.log(0.25), 0.0]))
    assert kl.tolist() == pytest.approx([3 - math.log(4), -0.75 + math.log(4)])
    assert math.isfinite(behaviour_kl(torch.tensor([0.0]), torch.tensor([-1e4])).item())


def test_the_kl_penalty_restores_tokens_in_proportion_to_their_change() -> None:
    # r = 1, 1/4, 4, 20: the gradient is r − 1, limited to 4.
    ratio = torch.tensor([1.0, 0.25, 4.0, 20.0])
    logp = (BEHAVIOUR + ratio.log()).requires_grad_()
    penalty = behaviour_kl_penalty(logp, BEHAVIOUR)
    tangent = 4 - math.log(5) + 4 * math.log(4)  # at r = 5 the estimate is 4 − ln 5; ln 20 − ln 5 = ln 4
    assert penalty.tolist() == pytest.approx([0, -0.75 + math.log(4), 3 - math.log(4), tangent], abs=1e-5)
    assert torch.autograd.grad(penalty.sum(), logp)[0].tolist() == pytest.approx([0, -0.75, 3, 4], abs=1e-5)


def test_a_token_that_became_impossible_has_no_policy_gradient_but_is_restored() -> None:
    behaviour, impossible = torch.tensor([-0.01]), torch.tensor([-14.0], requires_grad=True)
    loss, _ = ppo_loss(
        impossible,
        prox_logp_T=impossible.detach(),
        behav_logp_T=behaviour,
        advantages_T=torch.ones(1),
        loss_mask_T=torch.ones(1, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, 1]),
        eps_clip=0.2,
    )
    assert torch.autograd.grad(loss, impossible)[0].item() == pytest.approx(0, abs=1e-5)
    penalty = behaviour_kl_penalty(impossible, behaviour)
    assert torch.autograd.grad(penalty.sum(), impossible)[0].item() == pytest.approx(-1, abs=1e-5)


def test_the_scale_of_advantages_ignores_groups_without_signal() -> None:
    advantages, trained = torch.tensor([3.0, 0.0, -1.0, 9.0]), torch.tensor([True, True, True, False])
    # √((9 + 1) / 2)
    assert advantage_scale(advantages, trained, reduce=lambda sums: sums) == pytest.approx(math.sqrt(5))
    assert advantage_scale(torch.zeros(4), trained, reduce=lambda sums: sums) == 0.0
    # Another rank with the sum of squares 30 and two tokens: √((10 + 30) / 4).
    other = torch.tensor([30.0, 2.0], dtype=torch.float64)
    assert advantage_scale(advantages, trained, reduce=lambda sums: sums + other) == pytest.approx(math.sqrt(10))


def test_the_learning_rate_is_scaled_by_the_root_of_the_excess() -> None:
    assert trust_region_scale(0.02, budget=0.005, skip=None) == 0.5
    assert trust_region_scale(0.004, budget=0.005, skip=None) == 1.0
    assert trust_region_scale(9.0, budget=None, skip=None) == 1.0
    assert trust_region_scale(0.2, budget=0.005, skip=0.1) == 0.0
    assert trust_region_scale(math.nan, budget=0.005, skip=None) == 0.0


@given(st.floats(0, 1e6), st.floats(1e-6, 10))
def test_the_scaled_drift_never_exceeds_the_budget(kl: float, budget: float) -> None:
    scale = trust_region_scale(kl, budget=budget, skip=None)
    assert 0 < scale <= 1
    assert scale**2 * kl <= max(budget, 0) * (1 + 1e-9)
