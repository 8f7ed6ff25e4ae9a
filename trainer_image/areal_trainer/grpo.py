"""From raw task rewards to the advantages of tokens."""

# B sequences of this rank, T tokens of its batch

from __future__ import annotations

import torch
from torch import Tensor

from areal_api.actor import PPOActorConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.algo.advantages import gae, normalize_advantages
from areal_trainer.algo.kl import token_rewards
from areal_trainer.algo.rewards import normalize_rewards, overlong_penalty, shape_rewards
from areal_trainer.algo.sequences import Reduce, last_response_tokens, response_counts
from areal_trainer.algo.token_stats import report, summarize
from areal_trainer.batch import PackedBatch
from areal_trainer.model.microbatches import merged_over_ranks

PREFIX = "grpo_actor/"


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

    Rewards are penalised for length, scaled, normalised; the KL penalty goes into the token rewards; then GAE and the
    normalisation of advantages. ``ref_logp_T`` is needed when ``kl_ctl`` is above 0; ``logp_T``, the trainer's own
    log-probs, then falls back on the server's when there are none.
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
            groups=batch.n_groups,
            mean_level=config.adv_norm.mean_level,
            std_level=config.adv_norm.std_level,
            leave_one_out=config.adv_norm.mean_leave1out,
            unbiased=config.adv_norm.std_unbiased,
            reduce=reduce,
            eps=config.adv_norm.eps,
        )
    if config.mask_no_eos_with_zero:
        cut_T = torch.repeat_interleave(_cut_off(batch), batch.cu_seqlens.diff().long())
        advantages_T = advantages_T.masked_fill(cut_T, 0.0)
    return advantages_T, _statistics(batch, rewards_B, rewards_T, kl_rewards_T, advantages_T)


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
            rewards_B,
            batch.group_B,
            groups=batch.n_groups,
            mean_level=config.reward_norm.mean_level,
            std_level=config.reward_norm.std_level,
            leave_one_out=config.reward_norm.mean_leave1out,
            unbiased=config.reward_norm.std_unbiased,
            reduce=reduce,
            eps=config.reward_norm.eps,
        )
    if config.mask_no_eos_with_zero:
        rewards_B = rewards_B.masked_fill(_cut_off(batch), 0.0)
    return rewards_B


def _cut_off(batch: PackedBatch) -> Tensor:
    """Sequences that ended at their length instead of stopping, [B] bool."""
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
            "task_reward": (batch.rewards_B, None),
            "final_reward": (final_B, None),
            "prompt_len": (batch.prompt_len_B, None),
            "seq_len": (lengths_B, None),
            "no_eos_ratios": (_cut_off(batch), None),
            "correct_seq_len": (lengths_B, correct_B),
            "incorrect_seq_len": (lengths_B, ~correct_B),
        }
    )
    stats |= summarize({"advantages": (advantages_T, mask_T), "kl_rewards": (kl_rewards_T, mask_T)})
    stats = merged_over_ranks(stats)
    # The reward itself, for every reader of a run, stands without the prefix.
    numbers = {
        name if name.startswith("task_reward/") else f"{PREFIX}{name}": value for name, value in report(stats).items()
    }
    numbers["n_tokens"] = float(stats["seq_len"][0])
    numbers["n_seqs"] = float(stats["seq_len"][1])
    return numbers
