"""The loss of a pass, as the configuration of the policy chooses it."""

# T tokens of the batch, N trained tokens of a pass

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from areal_api.actor import CorrectionConfig, PPOActorConfig
from areal_trainer.algo.corrections import Correction
from areal_trainer.algo.loss import cispo_loss, ppo_loss, sapo_loss
from areal_trainer.algo.token_stats import Stats
from areal_trainer.batch import PackedBatch
from areal_trainer.model.layout import Layout


def policy_loss(
    config: PPOActorConfig,
    batch: PackedBatch,
    layout: Layout,
    logp_N: Tensor,
    *,
    advantages_T: Tensor,
    prox_logp_T: Tensor | None,
    kept_T: Tensor,
) -> tuple[Tensor, Stats]:
    """Sum of the token losses of a pass, and statistics. ``kept_T``: the tokens that M2PO keeps.

    Without ``prox_logp_T`` the old log-probs are ``logp_N`` itself, or the servers' if nothing recomputes them.
    """
    token_N, device = layout.token_N, logp_N.device
    behav_logp_N = batch.behav_logp_T[token_N].to(device)
    if prox_logp_T is not None:
        old_logp_N = prox_logp_T[token_N].to(device)
    else:
        recomputes = config.use_decoupled_loss or config.recompute_logprob
        old_logp_N = logp_N.detach() if recomputes else behav_logp_N
    advantages_N = advantages_T[token_N].to(device)
    kept_N = kept_T[token_N].to(device)
    cu_seqlens = torch.searchsorted(token_N, batch.cu_seqlens.long()).to(device)
    if config.use_sapo_loss:
        return sapo_loss(
            logp_N,
            old_logp_T=old_logp_N,
            advantages_T=advantages_N,
            loss_mask_T=kept_N,
            cu_seqlens=cu_seqlens,
            tau_pos=config.sapo_tau_pos,
            tau_neg=config.sapo_tau_neg,
            ratio_level=config.importance_sampling_level,
        )
    shared: dict[str, Any] = {
        "prox_logp_T": old_logp_N,
        "behav_logp_T": behav_logp_N if config.use_decoupled_loss else None,
        "advantages_T": advantages_N,
        "loss_mask_T": kept_N,
        "cu_seqlens": cu_seqlens,
        "eps_clip": config.eps_clip,
        "behav_imp_weight_cap": config.behav_imp_weight_cap,
        "correction": _correction(config.correction),
    }
    if config.use_cispo_loss:
        assert config.eps_clip_higher is not None
        return cispo_loss(logp_N, eps_clip_higher=config.eps_clip_higher, **shared)
    return ppo_loss(
        logp_N,
        eps_clip_higher=config.eps_clip_higher,
        c_clip=config.c_clip,
        ratio_level=config.importance_sampling_level,
        **shared,
    )


def _correction(config: CorrectionConfig) -> Correction:
    return Correction(
        weight_level=config.weight_level,
        truncate=config.truncate,
        min_weight=config.min_weight,
        max_binary_kl=config.max_binary_kl,
        max_prob_diff=config.max_prob_diff,
        max_sequence_weight=config.max_sequence_weight,
        eps_clip=config.eps_clip,
    )
