"""From raw task rewards to the advantages of tokens."""

# B sequences of this rank, T tokens of its batch

from __future__ import annotations

import torch
from torch import Tensor

from areal_api.actor import NormConfig, PPOActorConfig
from areal_api.generation import GenerationHyperparameters
from areal_api.stat_names import (
    ACTOR_PREFIX,
    GROUPS_WITHOUT_SIGNAL,
    PROMPT_LENGTH,
    REWARD_ERROR,
    SEQUENCE_LENGTH,
    TASK_REWARD,
)
from areal_trainer.algo.advantages import gae, normalize_advantages
from areal_trainer.algo.kl import token_rewards
from areal_trainer.algo.norm import Norm, groups_without_signal, standard_error
from areal_trainer.algo.rewards import normalize_rewards, overlong_penalty, shape_rewards
from areal_trainer.algo.sequences import Reduce, last_response_tokens, response_counts
from areal_trainer.algo.token_stats import report, summarize
from areal_trainer.batch import PackedBatch
from areal_trainer.model.microbatches import merged_over_ranks


def compute_advantages(
    batch: PackedBatch,
    config: PPOActorConfig,
    gconfig: GenerationHyperparameters,
    *,
    logp_T: Tensor | None,
    ref_logp_T: Tensor | None,
    reduce: Reduce,
) -> tuple[Tensor, dict[str, float]]:
    """Advantages [T] (0 off the loss mask) and statistics over all ranks. Collective.

    Applies in order: length penalty, scaling and normalisation of rewards, KL penalty in the token rewards, GAE,
    normalisation of advantages. With ``kl_ctl`` above 0, ``ref_logp_T`` is required and ``logp_T`` (the trainer's
    log-probs) defaults to the server's.
    """
    rewards_B = _sequence_rewards(batch, config, gconfig, reduce)
    rewards_T, kl_rewards_T = token_rewards(
        rewards_B,
        batch.loss_mask_T,
        batch.cu_seqlens,
        logp_T=batch.behav_logp_T if logp_T is None else logp_T,
        ref_logp_T=ref_logp_T,
        kl_ctl=config.kl_ctl,
        estimator=config.kl_estimator,
    )
    advantages_T = gae(
        rewards_T, batch.loss_mask_T, batch.cu_seqlens, discount=config.discount, gae_lambda=config.gae_lambda
    )
    if config.adv_norm is not None:
        advantages_T = normalize_advantages(
            advantages_T,
            batch.loss_mask_T,
            batch.cu_seqlens,
            batch.group_B,
            _norm(config.adv_norm),
            groups=batch.n_groups,
            reduce=reduce,
        )
    if config.mask_no_eos_with_zero:
        cut_T = torch.repeat_interleave(_cut_off(batch), batch.cu_seqlens.diff().long())
        advantages_T = advantages_T.masked_fill(cut_T, 0.0)
    stats = _statistics(batch, rewards_B, rewards_T, kl_rewards_T, advantages_T)
    without = groups_without_signal(batch.rewards_B, batch.group_B, groups=batch.n_groups, reduce=reduce)
    stats[f"{ACTOR_PREFIX}{GROUPS_WITHOUT_SIGNAL}"] = without
    error = standard_error(batch.rewards_B, batch.group_B, groups=batch.n_groups, reduce=reduce)
    return advantages_T, stats if error is None else stats | {f"{ACTOR_PREFIX}{REWARD_ERROR}": error}


def _sequence_rewards(
    batch: PackedBatch, config: PPOActorConfig, gconfig: GenerationHyperparameters, reduce: Reduce
) -> Tensor:
    rewards_B = batch.rewards_B
    if config.overlong_reward_penalty:
        assert config.overlong_tokens is not None
        assert config.overlong_penalty_factor is not None
        rewards_B = rewards_B + overlong_penalty(
            response_counts(batch.loss_mask_T, batch.cu_seqlens),
            max_new_tokens=gconfig.max_new_tokens,
            overlong_tokens=config.overlong_tokens,
            factor=config.overlong_penalty_factor,
        )
    rewards_B = shape_rewards(
        rewards_B, bias=config.reward_bias, scaling=config.reward_scaling, clip=config.reward_clip
    )
    if config.reward_norm is not None:
        rewards_B = normalize_rewards(
            rewards_B, batch.group_B, _norm(config.reward_norm), groups=batch.n_groups, reduce=reduce
        )
    if config.mask_no_eos_with_zero:
        rewards_B = rewards_B.masked_fill(_cut_off(batch), 0.0)
    return rewards_B


def _norm(config: NormConfig) -> Norm:
    return Norm(
        config.mean_level,
        config.std_level,
        leave_one_out=config.mean_leave1out,
        unbiased=config.std_unbiased,
        eps=config.eps,
    )


def _cut_off(batch: PackedBatch) -> Tensor:
    """Sequences that ended at their maximum length without a stop token, [B] bool."""
    return torch.tensor([t.finish_reason == "length" for t in batch.trajectories], dtype=torch.bool)


def _statistics(
    batch: PackedBatch, rewards_B: Tensor, rewards_T: Tensor, kl_rewards_T: Tensor, advantages_T: Tensor
) -> dict[str, float]:
    mask_T, lengths_B = batch.loss_mask_T, batch.cu_seqlens.diff()
    correct_B = batch.rewards_B > 0
    positions, sequences = last_response_tokens(mask_T, batch.cu_seqlens)
    final_B = torch.zeros_like(rewards_B).index_copy(0, sequences, rewards_T[positions])
    stats = summarize(
        {
            TASK_REWARD: (batch.rewards_B, None),
            "final_reward": (final_B, None),
            PROMPT_LENGTH: (batch.prompt_len_B, None),
            SEQUENCE_LENGTH: (lengths_B, None),
            "no_eos_ratios": (_cut_off(batch), None),
            "correct_seq_len": (lengths_B, correct_B),
            "incorrect_seq_len": (lengths_B, ~correct_B),
        }
    )
    stats |= summarize({"advantages": (advantages_T, mask_T), "kl_rewards": (kl_rewards_T, mask_T)})
    stats = merged_over_ranks(stats)
    # Every reader of a run looks for the reward, so its name has no prefix.
    numbers = {
        name if name.startswith(f"{TASK_REWARD}/") else f"{ACTOR_PREFIX}{name}": value
        for name, value in report(stats).items()
    }
    numbers["n_tokens"] = float(stats[SEQUENCE_LENGTH][0])
    numbers["n_seqs"] = float(stats[SEQUENCE_LENGTH][1])
    return numbers
