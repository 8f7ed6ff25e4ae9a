"""KL penalty towards a reference model, as a reward of each token."""

# B sequences, T tokens

from typing import Literal

import torch
from torch import Tensor

from areal_trainer.algo.sequences import last_response_tokens

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logp_T: Tensor, ref_logp_T: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) from samples of π (J. Schulman, "Approximating KL divergence", 2020).

    With d = logp − ref_logp: k1 = d (unbiased), k2 = d²/2 (low variance), k3 = e^(−d) − 1 + d (both, never negative).
    """
    difference_T = logp_T - ref_logp_T
    if estimator == "k1":
        return difference_T
    if estimator == "k2":
        return difference_T.square() / 2
    return torch.expm1(-difference_T) + difference_T


def token_rewards(
    rewards_B: Tensor,
    loss_mask_T: Tensor,
    cu_seqlens: Tensor,
    *,
    logp_T: Tensor | None = None,
    ref_logp_T: Tensor | None = None,
    kl_ctl: float = 0.0,
    estimator: Estimator = "k1",
) -> tuple[Tensor, Tensor]:
    """Token rewards, and the KL penalty in them; both float32 over T and 0 outside the response.

    Every response token gets −kl_ctl · k(logp − ref_logp); the last one (of the last turn) also its sequence's reward.
    `logp_T` and `ref_logp_T` are required if `kl_ctl` is not 0. A sequence without response tokens gets nothing.
    """
    kl_rewards_T = torch.zeros(len(loss_mask_T), dtype=torch.float32, device=loss_mask_T.device)
    if kl_ctl != 0:
        assert logp_T is not None, "kl_ctl > 0 needs logp_T"
        assert ref_logp_T is not None, "kl_ctl > 0 needs ref_logp_T"
        penalty_T = -kl_ctl * kl_estimate(logp_T.float(), ref_logp_T.float(), estimator)
        kl_rewards_T = torch.where(loss_mask_T, penalty_T, 0.0)
    positions, sequences = last_response_tokens(loss_mask_T, cu_seqlens)
    rewards_T = kl_rewards_T.index_add(0, positions, rewards_B[sequences].float())
    return rewards_T, kl_rewards_T
