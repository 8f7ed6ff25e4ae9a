"""Corrections for stale samples, relative to the behaviour policy that generated them.

With w = π_prox(token) / π_behav(token), where π_prox is the policy before the update and π_behav the one that sampled:

- KL penalty (PPO with a KL penalty, arXiv:1707.06347, section 4, with π_behav as the old policy): adds
  c · s · KL(π_behav ‖ π) to the loss, s being the root mean square of the nonzero advantages
- token mask (IcePop, arXiv:2510.18855): drop tokens with w outside [w_min, w_max]
- binary KL mask (KPop, as in AReaL's ``rejection_sampling.metric: binary_kl``): drop tokens whose probabilities, taken
  as those of a coin, have a KL divergence above φ in either direction
- truncated importance sampling (Ionides 2008, "Truncated Importance Sampling"; Yao et al. 2025 for LLMs): limit w to
  [w_min, w_max]
- probability mask (IPO of prime-rl): drop tokens with |π_prox − π_behav| > d, which catches likely tokens that became
  unlikely and ignores unlikely tokens that merely changed their ratio
- sequence mask (Liu et al. 2025, "When Speed Kills Stability"): drop sequences whose geometric mean of w is outside
  [1/s, s]
- sequence weights (as GSPO's ratio, arXiv:2507.18071): w is the geometric mean over the sequence
- clipping against the behaviour policy (PPO, arXiv:1707.06347, with π_behav as the old policy): drop tokens that moved
  further than ε in the direction of their advantage
- KL budget (this project): scale the learning rate of an update such that the drift from the behaviour policy stays
  near a budget

All are functions of log-probs; dropped tokens stay in the denominator of the loss.

Why the penalty: a policy gradient weighted by π / π_behav vanishes for a token that became unlikely, whatever its
advantage. A token that all good samples need, such as a separator, gets gradients of both signs that cancel. If noise
or a neighbouring token pushes it down, only samples of the broken policy would push it up again, and these are as late
as the staleness. The penalty's gradient, (π / π_behav − 1) · ∇ log π, restores such a token at once, and is 0 for
samples of the current policy.
"""

# B sequences, N response tokens, T tokens

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from areal_trainer.algo.sequences import Reduce

MAX_PENALTY_RATIO = 5.0  # above this ratio the KL penalty grows linearly in the log-prob
_SMALLEST_PROB = 1e-8


@dataclass(frozen=True)
class Correction:
    """Choice of corrections of the loss; None switches one off."""

    weight_level: Literal["token", "sequence"] = "token"  # of w
    truncate: bool = False  # limit weights to their bounds, instead of dropping tokens outside
    min_weight: float | None = None  # w_min
    max_binary_kl: float | None = None  # φ
    max_prob_diff: float | None = None  # d
    max_sequence_weight: float | None = None  # s
    eps_clip: float | None = None  # ε


class Weights(NamedTuple):
    """Weights of the token losses, without gradient."""

    weight_N: Tensor
    kept_N: Tensor  # bool; the others are dropped
    truncated_N: Tensor  # bool; limited to a bound


def importance_weights(
    prox_logp_N: Tensor,
    behav_logp_N: Tensor,
    logp_N: Tensor,
    advantages_N: Tensor,
    counts_B: Tensor,
    *,
    cap: float | None,
    correction: Correction,
) -> Weights:
    """Weight of each token's loss, which tokens are kept, and which weights are truncated.

    `cap` is w_max (None: unbounded). The N response tokens belong to consecutive sequences of `counts_B` tokens.
    `logp_N` is of the policy being trained.
    """
    log_weight_N = (prox_logp_N - behav_logp_N).detach()
    mean_N = _sequence_means(log_weight_N, counts_B)
    weight_N = (mean_N if correction.weight_level == "sequence" else log_weight_N).exp()
    kept_N = torch.ones_like(weight_N, dtype=torch.bool)
    truncated_N = torch.zeros_like(kept_N)
    if correction.truncate:
        limited_N = weight_N.clamp(min=correction.min_weight, max=cap)
        weight_N, truncated_N = limited_N, limited_N != weight_N
    else:
        if cap is not None:
            kept_N &= weight_N <= cap
        if correction.min_weight is not None:
            kept_N &= weight_N >= correction.min_weight
    if correction.max_binary_kl is not None:
        kept_N &= binary_kl(prox_logp_N.detach(), behav_logp_N) <= correction.max_binary_kl
    if correction.max_prob_diff is not None:
        kept_N &= (prox_logp_N.detach().exp() - behav_logp_N.exp()).abs() <= correction.max_prob_diff
    if correction.max_sequence_weight is not None:
        kept_N &= mean_N.abs() <= math.log(correction.max_sequence_weight)
    if correction.eps_clip is not None:
        ratio_N = (logp_N.detach() - behav_logp_N).exp()
        too_high_N = (advantages_N > 0) & (ratio_N > 1 + correction.eps_clip)
        too_low_N = (advantages_N < 0) & (ratio_N < 1 - correction.eps_clip)
        kept_N &= ~(too_high_N | too_low_N)
    return Weights(weight_N, kept_N, truncated_N)


def _sequence_means(values_N: Tensor, counts_B: Tensor) -> Tensor:
    sequence_N = torch.repeat_interleave(torch.arange(len(counts_B), device=counts_B.device), counts_B)
    sums_B = values_N.new_zeros(len(counts_B)).index_add_(0, sequence_N, values_N)
    return (sums_B / counts_B.clamp(min=1))[sequence_N]


def binary_kl(logp_N: Tensor, other_logp_N: Tensor) -> Tensor:
    """The larger of KL(p ‖ q) and KL(q ‖ p) of coins with probabilities p and q, in nats; [N].

    KL(p ‖ q) = p · ln(p / q) + (1 − p) · ln((1 − p) / (1 − q)), with both in [1e-8, 1 − 1e-8], in float64.
    """
    p_N, q_N = (logp_N.double().exp().clamp(_SMALLEST_PROB, 1 - _SMALLEST_PROB) for logp_N in (logp_N, other_logp_N))
    tails_N, heads_N = torch.log((1 - p_N) / (1 - q_N)), torch.log(p_N / q_N)
    forward_N = p_N * heads_N + (1 - p_N) * tails_N
    backward_N = -q_N * heads_N - (1 - q_N) * tails_N
    return torch.maximum(forward_N, backward_N)


def behaviour_kl(logp_T: Tensor, behav_logp_T: Tensor) -> Tensor:
    """Estimate of KL(π_behav ‖ π) at each token, in nats.

    The k3 estimator e^d − 1 − d, d = logp − behav_logp, on samples of π_behav (J. Schulman, "Approximating KL
    divergence", 2020): unbiased and never negative. d is limited to 20, so that one token cannot make a mean infinite.
    """
    d_T = (logp_T - behav_logp_T).clamp(max=20.0)
    return torch.expm1(d_T) - d_T


def behaviour_kl_penalty(logp_N: Tensor, behav_logp_N: Tensor) -> Tensor:
    """The k3 estimate of KL(π_behav ‖ π) at each token, for the loss: its gradient is (min(r, 5) − 1) · ∇ logp.

    r = exp(logp − behav_logp). Above `MAX_PENALTY_RATIO` the estimate continues along its tangent, so that one unlikely
    token that became likely does not dominate the gradient.
    """
    d_N = logp_N - behav_logp_N
    limit = math.log(MAX_PENALTY_RATIO)
    below_N = d_N.clamp(max=limit)
    return torch.expm1(below_N) - below_N + (MAX_PENALTY_RATIO - 1) * (d_N - below_N)


def advantage_scale(advantages_T: Tensor, loss_mask_T: Tensor, *, reduce: Reduce) -> float:
    """Root mean square of the nonzero advantages over the trained tokens of all ranks; 0 without any. Collective.

    Groups with equal rewards have advantages of 0 and do not count, so the scale does not fall when training succeeds.
    """
    advantages_N = advantages_T[loss_mask_T].double()
    squares, count = reduce(torch.stack([advantages_N.square().sum(), advantages_N.count_nonzero().double()])).tolist()
    return math.sqrt(squares / count) if count else 0.0


def trust_region_scale(kl: float, *, budget: float | None, skip: float | None) -> float:
    """Factor on the learning rate of an update: 1 within the budget, √(budget / kl) above it, 0 above `skip`.

    The KL divergence between two policies grows with the square of the step between them, so policies that drifted by
    `kl` at the full learning rate drift by about `budget` at the scaled one. A KL that is not finite gives 0.
    """
    if not math.isfinite(kl) or (skip is not None and kl > skip):
        return 0.0
    return 1.0 if budget is None or kl <= budget else math.sqrt(budget / kl)
