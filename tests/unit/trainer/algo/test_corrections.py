"""Corrections for stale samples, with numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_trainer.algo.corrections import Correction, behaviour_kl, importance_weights, trust_region_scale
from areal_trainer.algo.loss import ppo_loss

# Probabilities of four tokens in two sequences: w = 4, 0.25 | 1.5, 0.5.
BEHAVIOUR = torch.tensor([0.1, 0.8, 0.4, 0.02]).log()
PROXIMAL = torch.tensor([0.4, 0.2, 0.6, 0.01]).log()
COUNTS = torch.tensor([2, 2])


def corrected(cap: float | None = None, advantages: float = 1.0, **settings: Any) -> tuple[list[float], list[bool]]:
    weight, kept = importance_weights(
        PROXIMAL, BEHAVIOUR, PROXIMAL, torch.full((4,), advantages), COUNTS, cap=cap, correction=Correction(**settings)
    )
    return weight.tolist(), kept.tolist()


def test_without_corrections_all_tokens_are_weighted() -> None:
    weight, kept = corrected()
    assert weight == pytest.approx([4.0, 0.25, 1.5, 0.5])
    assert all(kept)


def test_icepop_drops_weights_outside_of_its_interval() -> None:
    assert corrected(cap=3.0, min_weight=0.4)[1] == [False, False, True, True]


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


def test_the_kl_is_estimated_by_k3() -> None:
    # d = ln 4: 4 − 1 − ln 4; d = −ln 4: 1/4 − 1 + ln 4.
    kl = behaviour_kl(torch.tensor([0.0, math.log(0.25)]), torch.tensor([math.log(0.25), 0.0]))
    assert kl.tolist() == pytest.approx([3 - math.log(4), -0.75 + math.log(4)])
    assert math.isfinite(behaviour_kl(torch.tensor([0.0]), torch.tensor([-1e4])).item())


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
