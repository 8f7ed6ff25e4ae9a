"""Corrections for stale samples, relative to the behaviour policy that generated them.

With w = π_prox(token) / π_behav(token), where π_prox is the policy before the update and π_behav the one that sampled:

- token mask (IcePop, arXiv:2510.18855): drop tokens with w outside [w_min, w_max]
- truncated importance sampling (Ionides 2008, "Truncated Importance Sampling"; Yao et al. 2025 for LLMs): min(w, w_max)
- probability mask (IPO of prime-rl): drop tokens with |π_prox − π_behav| > d, which catches likely tokens that became
  unlikely and ignores unlikely tokens that merely changed their ratio
- sequence mask (Liu et al. 2025, "When Speed Kills Stability"): drop sequences whose geometric mean of w is outside
  [1/s, s]
- clipping against the behaviour policy (PPO, arXiv:1707.06347, with π_behav as the old policy): drop tokens that moved
  further than ε in the direction of their advantage
- KL budget (this project): scale the learning rate of an update such that the drift from the behaviour policy stays
  near a budget

All are functions of log-probs; dropped tokens stay in the denominator of the loss.
"""

# B sequences, N response tokens

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Correction:
    """Choice of corrections; None switches one off."""

    truncate: bool = False  # truncate weights to the cap, instead of dropping tokens above it
    min_weight: float | None = None  # w_min
    max_prob_diff: float | None = None  # d
    max_sequence_weight: float | None = None  # s
    eps_clip: float | None = None  # ε


def importance_weights(
    prox_logp_N: Tensor,
    behav_logp_N: Tensor,
    logp_N: Tensor,
    advantages_N: Tensor,
    counts_B: Tensor,
    *,
    cap: float | None,
    correction: Correction,
) -> tuple[Tensor, Tensor]:
    """Weight of each token's loss, and which tokens are kept (bool); both without gradient.

    `cap` is w_max (None: unbounded). The N response tokens belong to consecutive sequences of `counts_B` tokens.
    `logp_N` is of the policy being trained.
    """
    log_weight_N = (prox_logp_N - behav_logp_N).detach()
    weight_N = log_weight_N.exp()
    kept_N = torch.ones_like(weight_N, dtype=torch.bool)
    if cap is not None:
        if correction.truncate:
            weight_N = weight_N.clamp(max=cap)
        else:
            kept_N &= weight_N <= cap
    if correction.min_weight is not None:
        kept_N &= weight_N >= correction.min_weight
    if correction.max_prob_diff is not None:
        kept_N &= (prox_logp_N.detach().exp() - behav_logp_N.exp()).abs() <= correction.max_prob_diff
    if correction.max_sequence_weight is not None:
        sequence_N = torch.repeat_interleave(torch.arange(len(counts_B), device=counts_B.device), counts_B)
        sums_B = log_weight_N.new_zeros(len(counts_B)).index_add_(0, sequence_N, log_weight_N)
        mean_N = (sums_B / counts_B.clamp(min=1))[sequence_N]
        kept_N &= mean_N.abs() <= math.log(correction.max_sequence_weight)
    if correction.eps_clip is not None:
        ratio_N = (logp_N.detach() - behav_logp_N).exp()
        too_high_N = (advantages_N > 0) & (ratio_N > 1 + correction.eps_clip)
        too_low_N = (advantages_N < 0) & (ratio_N < 1 - correction.eps_clip)
        kept_N &= ~(too_high_N | too_low_N)
    return weight_N, kept_N


def behaviour_kl(logp_T: Tensor, behav_logp_T: Tensor) -> Tensor:
    """Estimate of KL(π_behav ‖ π) at each token, in nats.

    The k3 estimator e^d − 1 − d, d = logp − behav_logp, on samples of π_behav (J. Schulman, "Approximating KL
    divergence", 2020): unbiased and never negative. d is limited to 20, so that one token cannot make a mean infinite.
    """
    d_T = (logp_T - behav_logp_T).clamp(max=20.0)
    return torch.expm1(d_T) - d_T


def trust_region_scale(kl: float, *, budget: float | None, skip: float | None) -> float:
    """Factor on the learning rate of an update: 1 within the budget, √(budget / kl) above it, 0 above `skip`.

    The KL divergence between two policies grows with the square of the step between them, so policies that drifted by
    `kl` at the full learning rate drift by about `budget` at the scaled one. A KL that is not finite gives 0.
    """
    if not math.isfinite(kl) or (skip is not None and kl > skip):
        return 0.0
    return 1.0 if budget is None or kl <= budget else math.sqrt(budget / kl)
