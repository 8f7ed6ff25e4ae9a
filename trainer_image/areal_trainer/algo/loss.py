"""Policy losses: clipped (PPO, GRPO, DAPO, GSPO) with dual clip and decoupling, CISPO, and SAPO.

Each returns the SUM of its token losses; the caller divides by the number of response tokens of the whole minibatch
(all microbatches, all ranks), so that the gradient does not depend on the split.
"""

# B sequences, T tokens, N response tokens

from typing import Literal

import torch
from torch import Tensor

from areal_trainer.algo.corrections import Correction, importance_weights
from areal_trainer.algo.sequences import response_counts
from areal_trainer.algo.token_stats import Column, Stats, summarize

RatioLevel = Literal["token", "sequence"]
NO_CORRECTION = Correction()


def ppo_loss(
    logp_T: Tensor,
    *,
    prox_logp_T: Tensor,
    behav_logp_T: Tensor | None,
    advantages_T: Tensor,
    loss_mask_T: Tensor,
    cu_seqlens: Tensor,
    eps_clip: float,
    eps_clip_higher: float | None = None,
    c_clip: float | None = None,
    behav_imp_weight_cap: float | None = None,
    ratio_level: RatioLevel = "token",
    correction: Correction = NO_CORRECTION,
) -> tuple[Tensor, Stats]:
    """Sum over the response tokens of max(−A·r, −A·clip(r, 1 − eps_clip, 1 + eps_clip_higher)), and statistics.

    r = exp(logp − prox_logp); `eps_clip_higher` None means `eps_clip`. `ratio_level="sequence"` is the
    token form of GSPO (arXiv:2507.18071, GSPO-token): every token has the value exp(mean token log-ratio of its
    sequence) and the gradient of its own log-prob. Summed over the |o| tokens of one sequence with one advantage, the
    gradient is |o| times that of GSPO. GSPO averages over sequences; the token mean weights a sequence by its length,
    so the two agree only for sequences of equal length.
    `c_clip` > 1 bounds the loss of tokens with A < 0 by c_clip·|A| (dual clip, arXiv:1912.09729).
    With `behav_logp_T` the loss is decoupled (AReaL, arXiv:2505.24298): each token's loss is multiplied by
    w = exp(prox_logp − behav_logp). Tokens with w > `behav_imp_weight_cap` have loss 0, but stay in the denominator.
    `correction` (see `corrections`) drops further tokens in the same way, or truncates w.
    """
    index = loss_mask_T.nonzero().squeeze(1)
    logp, prox_logp, advantages = logp_T[index].float(), prox_logp_T[index].float(), advantages_T[index].float()
    old_logp = prox_logp if behav_logp_T is None else behav_logp_T[index].float()
    counts_B = response_counts(loss_mask_T, cu_seqlens)
    ratio = _ratio(logp, prox_logp, counts_B, ratio_level)
    upper = eps_clip if eps_clip_higher is None else eps_clip_higher
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - eps_clip, 1 + upper)
    losses = torch.maximum(plain, clipped)
    is_clipped, is_dual = plain < clipped, torch.zeros_like(plain, dtype=torch.bool)
    if c_clip is not None:
        bound = c_clip * advantages.abs()
        is_dual = (advantages < 0) & (losses > bound)
        losses = torch.where(is_dual, bound, losses)
    columns: dict[str, Column] = {}
    if behav_logp_T is not None:
        losses, columns = _weighted(
            losses, prox_logp, old_logp, logp, advantages, counts_B, cap=behav_imp_weight_cap, correction=correction
        )
    columns |= _common_columns(losses, ratio, logp, prox_logp, old_logp)
    columns |= {"clip_ratio": (is_clipped, None), "dual_clip_ratio": (is_dual, None)}
    return losses.sum(), summarize(columns)


def cispo_loss(
    logp_T: Tensor,
    *,
    prox_logp_T: Tensor,
    behav_logp_T: Tensor | None,
    advantages_T: Tensor,
    loss_mask_T: Tensor,
    cu_seqlens: Tensor,
    eps_clip: float,
    eps_clip_higher: float,
    behav_imp_weight_cap: float | None = None,
    correction: Correction = NO_CORRECTION,
) -> tuple[Tensor, Stats]:
    """CISPO (MiniMax-M1, arXiv:2506.13585, equations 4 and 5): sum of −clip(r, 1 − ε, 1 + ε_higher)·A·logp.

    The clipped r = exp(logp − prox_logp) is a constant weight, so tokens outside the clip range keep a gradient, unlike
    in `ppo_loss`. `eps_clip` = 1 removes the lower bound, as in the paper. The decoupled loss is that of `ppo_loss`.
    """
    index = loss_mask_T.nonzero().squeeze(1)
    logp, prox_logp, advantages = logp_T[index].float(), prox_logp_T[index].float(), advantages_T[index].float()
    old_logp = prox_logp if behav_logp_T is None else behav_logp_T[index].float()
    ratio = (logp.detach() - prox_logp).exp()
    clipped = ratio.clamp(1 - eps_clip, 1 + eps_clip_higher)
    losses = -clipped * advantages * logp
    columns: dict[str, Column] = {}
    if behav_logp_T is not None:
        counts_B = response_counts(loss_mask_T, cu_seqlens)
        losses, columns = _weighted(
            losses, prox_logp, old_logp, logp, advantages, counts_B, cap=behav_imp_weight_cap, correction=correction
        )
    columns |= _common_columns(losses, ratio, logp, prox_logp, old_logp)
    columns |= {"clip_ratio": (clipped != ratio, None)}
    return losses.sum(), summarize(columns)


def sapo_loss(
    logp_T: Tensor,
    *,
    old_logp_T: Tensor,
    advantages_T: Tensor,
    loss_mask_T: Tensor,
    cu_seqlens: Tensor,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    ratio_level: RatioLevel = "token",
) -> tuple[Tensor, Stats]:
    """Soft adaptive policy optimisation (arXiv:2511.20347): −A · (4/τ)·σ(τ·(r − 1)) in place of clipping, summed.

    τ is `tau_pos` where A > 0, `tau_neg` elsewhere; r = exp(logp − old_logp). Excludes the decoupled loss.
    """
    index = loss_mask_T.nonzero().squeeze(1)
    logp, old_logp, advantages = logp_T[index].float(), old_logp_T[index].float(), advantages_T[index].float()
    ratio = _ratio(logp, old_logp, response_counts(loss_mask_T, cu_seqlens), ratio_level)
    tau = torch.where(advantages > 0, tau_pos, tau_neg)
    losses = -advantages * torch.sigmoid(tau * (ratio - 1)) * (4 / tau)
    return losses.sum(), summarize(_common_columns(losses, ratio, logp, old_logp, old_logp))


def _weighted(
    losses: Tensor,
    prox_logp: Tensor,
    old_logp: Tensor,
    logp: Tensor,
    advantages: Tensor,
    counts_B: Tensor,
    *,
    cap: float | None,
    correction: Correction,
) -> tuple[Tensor, dict[str, Column]]:
    """The decoupled loss: `losses` weighted by proximal ÷ behaviour probability, 0 where a token is dropped."""
    found = importance_weights(prox_logp, old_logp, logp, advantages, counts_B, cap=cap, correction=correction)
    weight, kept = found.weight_N, found.kept_N
    # `where` instead of a factor 0: an infinite weight times 0 would be NaN.
    losses = torch.where(kept, losses * torch.where(kept, weight, 0.0), 0.0)
    columns: dict[str, Column] = {
        "behave_imp_weight": (weight, kept),
        "behave_approx_kl": (prox_logp - old_logp, kept),
        "unclipped_behave_tokens": (kept, None),
    }
    if correction.truncate:
        columns["truncated_behave_tokens"] = (found.truncated_N, None)
    return losses, columns


def _ratio(logp: Tensor, base_logp: Tensor, counts_B: Tensor, level: RatioLevel) -> Tensor:
    log_ratio = logp - base_logp
    if level == "token":
        return log_ratio.exp()
    with torch.no_grad():
        sequence = torch.repeat_interleave(torch.arange(len(counts_B), device=logp.device), counts_B)
        sums_B = log_ratio.new_zeros(len(counts_B)).index_add_(0, sequence, log_ratio)
        mean = (sums_B / counts_B.clamp(min=1))[sequence]
    return (mean + (logp - logp.detach())).exp()


def _common_columns(
    losses: Tensor, ratio: Tensor, logp: Tensor, base_logp: Tensor, old_logp: Tensor
) -> dict[str, Column]:
    return {
        "importance_weight": (ratio, None),
        "approx_kl": (logp - base_logp, None),
        "new_logp": (logp, None),
        "old_logp": (old_logp, None),
        "actor_loss": (losses, None),
    }
