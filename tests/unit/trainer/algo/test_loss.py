"""Losses and their statistics, by numbers worked by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from areal_trainer.algo.loss import cispo_loss, ppo_loss, sapo_loss
from areal_trainer.algo.m2po import second_moment_mask
from areal_trainer.algo.sequences import one_rank
from areal_trainer.algo.token_stats import Stats, merge_stats, report, summarize


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def one_sequence(ratios: list[float], advantages: list[float], **options: Any) -> tuple[float, list[float], Stats]:
    """Loss, gradient by log-prob and statistics of tokens with these ratios to the proximal policy."""
    n = len(ratios)
    logp = logs(*ratios).requires_grad_()
    loss, stats = ppo_loss(
        logp,
        **{
            "prox_logp_T": torch.zeros(n),
            "behav_logp_T": None,
            "advantages_T": torch.tensor(advantages),
            "loss_mask_T": torch.ones(n, dtype=torch.bool),
            "cu_seqlens": torch.tensor([0, n]),
            "eps_clip": 0.2,
        }
        | options,
    )
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.item(), gradient.tolist(), stats


def averages(stats: Stats) -> dict[str, float]:
    return {name.removesuffix("/avg"): value for name, value in report(stats).items() if name.endswith("/avg")}


def test_clipping_stops_ratios_that_moved_far_enough() -> None:
    # A > 0 beyond 1.2: −2·1.2, no gradient. A > 0 below 0.8 still learns. A < 0 below 0.8 stops, above 1.2 learns.
    loss, gradient, stats = one_sequence([1.5, 0.5, 0.5, 1.5], [2.0, 2.0, -1.0, -1.0])
    assert loss == pytest.approx(-2.4 - 1.0 + 0.8 + 1.5)
    assert gradient == pytest.approx([0, -1.0, 0, 1.5])
    assert averages(stats)["clip_ratio"] == 0.5


def test_clip_higher_widens_only_the_upper_side() -> None:
    loss, gradient, _ = one_sequence([1.25, 1.5, 0.75], [1.0, 1.0, -1.0], eps_clip_higher=0.28)
    assert loss == pytest.approx(-1.25 - 1.28 + 0.8)
    assert gradient == pytest.approx([-1.25, 0, 0])


def test_dual_clip_bounds_only_the_loss_of_negative_advantages() -> None:
    loss, gradient, stats = one_sequence([4.0, 2.0, 4.0], [-2.0, -2.0, 2.0], c_clip=3.0)
    assert loss == pytest.approx(6.0 + 4.0 - 2.4)
    assert gradient == pytest.approx([0, 4.0, 0])
    assert averages(stats)["dual_clip_ratio"] == pytest.approx(1 / 3)


def test_the_decoupled_loss_weights_tokens_and_drops_those_above_the_cap() -> None:
    # prox ÷ behaviour is 2, 1/2, 8; the last is over the cap of 5.
    loss, gradient, stats = one_sequence(
        [1.1, 1.1, 1.1],
        [1.0, 1.0, 1.0],
        prox_logp_T=torch.zeros(3),
        behav_logp_T=logs(0.5, 2.0, 0.125),
        behav_imp_weight_cap=5.0,
    )
    assert loss == pytest.approx(-2.2 - 0.55)
    assert gradient == pytest.approx([-2.2, -0.55, 0])
    means = averages(stats)
    assert means["behave_imp_weight"] == pytest.approx(1.25)
    assert means["behave_approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert means["unclipped_behave_tokens"] == pytest.approx(2 / 3)
    assert means["old_logp"] == pytest.approx(math.log(0.125) / 3)


def test_an_infinite_weight_is_dropped() -> None:
    loss, gradient, _ = one_sequence(
        [1.0, 1.0], [1.0, 1.0], behav_logp_T=torch.tensor([0.0, -2000.0]), behav_imp_weight_cap=5.0
    )
    assert (loss, gradient) == (pytest.approx(-1.0), pytest.approx([-1.0, 0.0]))


def test_masked_tokens_are_ignored_even_if_they_are_nan() -> None:
    nan = float("nan")
    logp = torch.tensor([nan, math.log(1.1), nan], requires_grad=True)
    loss, stats = ppo_loss(
        logp,
        prox_logp_T=torch.tensor([nan, 0.0, nan]),
        behav_logp_T=None,
        advantages_T=torch.tensor([nan, 1.0, nan]),
        loss_mask_T=torch.tensor([False, True, False]),
        cu_seqlens=torch.tensor([0, 2, 3]),
        eps_clip=0.2,
        ratio_level="sequence",
    )
    assert torch.autograd.grad(loss, logp)[0].tolist() == pytest.approx([0, -1.1, 0])
    assert averages(stats)["new_logp"] == pytest.approx(math.log(1.1))


def test_gspo_gives_a_sequence_one_ratio_and_the_gradient_of_the_sequence_form() -> None:
    # Two sequences of a prompt token and 2 and 1 answers: √(2 · 1/2) = 1 and 1.1.
    mask = torch.tensor([0, 1, 1, 0, 1], dtype=torch.bool)
    logp = logs(9, 2, 0.5, 9, 1.1).requires_grad_()
    settings: dict[str, Any] = {"prox_logp_T": torch.zeros(5), "behav_logp_T": None, "loss_mask_T": mask}
    advantages = torch.tensor([0, 3.0, 3.0, 0, -1.0])
    loss, stats = ppo_loss(
        logp,
        **settings,
        advantages_T=advantages,
        cu_seqlens=torch.tensor([0, 3, 5]),
        eps_clip=0.2,
        ratio_level="sequence",
    )
    assert loss.item() == pytest.approx(-3 - 3 + 1.1)
    assert report(stats)["importance_weight/max"] == pytest.approx(1.1)
    # GSPO: |o|·A·s with s = exp(mean log-ratio); its gradient by each of the two log-probs is A·s.
    sequence_form = -2 * 3 * logp[1:3].mean().exp() + logp[4].exp()
    expected = torch.autograd.grad(sequence_form, logp, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logp)[0], expected)


def test_cispo_keeps_the_gradient_of_tokens_outside_the_clip_range() -> None:
    # r = 1.2, 3, 0.5 with the range [0.8, 2]; the gradient of −w·A·logp is −w·A with w = 1.2, 2 and 0.8.
    logp = logs(1.2, 3.0, 0.5).requires_grad_()
    loss, stats = cispo_loss(
        logp,
        prox_logp_T=torch.zeros(3),
        behav_logp_T=None,
        advantages_T=torch.tensor([1.0, 2.0, -1.0]),
        loss_mask_T=torch.ones(3, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, 3]),
        eps_clip=0.2,
        eps_clip_higher=1.0,
    )
    assert loss.item() == pytest.approx(-1.2 * math.log(1.2) - 4 * math.log(3) + 0.8 * math.log(0.5))
    assert torch.autograd.grad(loss, logp)[0].tolist() == pytest.approx([-1.2, -4.0, 0.8])
    assert averages(stats)["clip_ratio"] == pytest.approx(2 / 3)


def test_cispo_of_stale_tokens_is_weighted_and_capped_as_the_decoupled_loss() -> None:
    # Proximal ÷ behaviour is 2 and 8; above the cap of 5 a token is dropped. r is 1.
    logp = logs(0.5, 0.5).requires_grad_()
    loss, _ = cispo_loss(
        logp,
        prox_logp_T=logs(0.5, 0.5),
        behav_logp_T=logs(0.25, 0.0625),
        advantages_T=torch.ones(2),
        loss_mask_T=torch.ones(2, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, 2]),
        eps_clip=1.0,
        eps_clip_higher=4.0,
        behav_imp_weight_cap=5.0,
    )
    assert torch.autograd.grad(loss, logp)[0].tolist() == pytest.approx([-2.0, 0.0])


def test_sapo_applies_a_soft_gate_by_the_sign_of_the_advantage() -> None:
    logp = logs(1.0, 1.0, 2.0, 2.0).requires_grad_()
    loss, _ = sapo_loss(
        logp,
        old_logp_T=torch.zeros(4),
        advantages_T=torch.tensor([1.0, -1.0, 1.0, -1.0]),
        loss_mask_T=torch.ones(4, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, 4]),
        tau_pos=1.0,
        tau_neg=2.0,
    )
    sigmoid_1, sigmoid_2 = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    # At r = 1 the gate is 2/τ with slope 1 for every τ, which is the on-policy gradient.
    assert loss.item() == pytest.approx(-2 + 1 - 4 * sigmoid_1 + 2 * sigmoid_2)
    gradient = torch.autograd.grad(loss, logp)[0].tolist()
    slopes = [4 * s * (1 - s) * 2 for s in (sigmoid_1, sigmoid_2)]
    assert gradient == pytest.approx([-1, 1, -slopes[0], slopes[1]], rel=1e-5)


def test_m2po_masks_the_largest_moments_until_the_mean_is_below_the_threshold() -> None:
    # m = 0.01, 0.04, 4, 0.09 and one off the response. Mean of all but the 4: 0.0467; with it 1.035.
    prox = torch.tensor([0.1, -0.2, 2.0, 0.3, 50.0])
    mask = torch.tensor([1, 1, 1, 1, 0], dtype=torch.bool)
    kept = [
        second_moment_mask(prox, torch.zeros(5), mask, threshold=threshold, reduce=one_rank).tolist()
        for threshold in (0.05, 1.1, 0.02, 0.005)
    ]
    assert kept[0] == [True, True, False, True, False]
    assert kept[1] == [True, True, True, True, False]
    assert kept[2] == [True, False, False, False, False]
    assert kept[3] == [False] * 5


def test_statistics_of_parts_merge_to_those_of_the_whole() -> None:
    values, counted = torch.tensor([1.0, 5.0, -2.0, 4.0]), torch.tensor([True, False, True, True])
    whole = summarize({"x": (values, counted), "y": (values, None)})
    parts = [
        summarize({"x": (values[s], counted[s]), "y": (values[s], None)})
        for s in (slice(0, 2), slice(2, 2), slice(2, 4))
    ]
    assert whole["x"].tolist() == [3.0, 3.0, -2.0, 4.0]
    assert {name: stat.tolist() for name, stat in merge_stats(parts).items()} == {
        name: stat.tolist() for name, stat in whole.items()
    }
    assert report(whole)["x/avg"] == 1.0
    assert report(summarize({"x": (values[:0], None)})) == {}
