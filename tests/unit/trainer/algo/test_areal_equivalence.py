"""A converted file of AReaL trains with AReaL's loss, on the same tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from areal_api.areal_config.convert import convert
from areal_api.config import GRPOConfig
from areal_trainer.algo.loss import ppo_loss

# T tokens of two sequences
LENGTHS = [5, 7]


def areal_loss(logp_T: Tensor, prox_T: Tensor, behav_T: Tensor, advantages_T: Tensor, rejection: Any) -> Tensor:
    """areal/utils/functional/functional.py, ppo_actor_loss_fn of AReaL 1.0, with token ratios and ratio rejection."""
    mask_T = torch.ones_like(logp_T, dtype=torch.bool)
    count = mask_T.count_nonzero()
    ratio_T = torch.exp(logp_T - prox_T)
    loss_T = torch.max(-advantages_T * ratio_T, -advantages_T * ratio_T.clamp(0.8, 1.2))
    if rejection is not None:
        weight_T = torch.exp(prox_T - behav_T)
        mask_T = weight_T <= rejection["upper"]
        loss_T = loss_T * weight_T
    return torch.where(mask_T, loss_T, 0).sum() / count


def our_loss(config: GRPOConfig, logp_T: Tensor, prox_T: Tensor, behav_T: Tensor, advantages_T: Tensor) -> Tensor:
    """As the policy calls it: the trainer's log-probs are recomputed for either key."""
    actor = config.actor
    old_T = prox_T if actor.use_decoupled_loss or actor.recompute_logprob else behav_T
    loss, _ = ppo_loss(
        logp_T,
        prox_logp_T=old_T,
        behav_logp_T=behav_T if actor.use_decoupled_loss else None,
        advantages_T=advantages_T,
        loss_mask_T=torch.ones_like(logp_T, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0),
        eps_clip=actor.eps_clip,
        behav_imp_weight_cap=actor.behav_imp_weight_cap,
    )
    return loss / len(logp_T)


@pytest.mark.parametrize("rejection", [..., None, {"upper": 5.0}, {"metric": "ratio", "upper": 2.0}])
def test_the_decoupled_loss_is_areals(rejection: Any) -> None:
    actor: dict[str, Any] = {"path": "m", "backend": "fsdp:d1", "use_decoupled_loss": True, "ppo_n_minibatches": 1}
    if rejection is not ...:
        actor["rejection_sampling"] = rejection
    raw = {"experiment_name": "e", "actor": actor, "train_dataset": {"path": "d", "batch_size": 2}}
    experiment, _ = convert(raw)
    config = GRPOConfig.model_validate({"experiment_name": "e", **experiment["spec"]["config"]})
    generator = torch.Generator().manual_seed(3)
    behav_T, prox_T, logp_T, advantages_T = torch.randn(4, sum(LENGTHS), generator=generator)
    logp_T = prox_T + 0.3 * logp_T
    ours = our_loss(config, logp_T, prox_T, behav_T, advantages_T)
    areals = areal_loss(logp_T, prox_T, behav_T, advantages_T, None if rejection is ... else rejection)
    assert ours.item() == pytest.approx(areals.item(), abs=1e-6)
