"""The named algorithms as settings of the same functions, each by numbers worked by hand.

Two groups: A of three samples with rewards 1, 0, 0 and B of two (the third was lost) with rewards 1, 1.
Responses have 1, 2, 1 and 1, 1 tokens.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from areal_trainer.algo.advantages import gae, normalize_advantages
from areal_trainer.algo.filters import rewards_differ
from areal_trainer.algo.kl import token_rewards
from areal_trainer.algo.loss import ppo_loss
from areal_trainer.algo.norm import Level, Norm
from areal_trainer.algo.rewards import normalize_rewards, overlong_penalty
from areal_trainer.algo.sequences import one_rank

REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0]
GROUPS = torch.tensor([0, 0, 0, 1, 1])
CU_SEQLENS = torch.tensor([0, 1, 3, 4, 5, 6])
MASK = torch.ones(6, dtype=torch.bool)
# New ÷ old probability of each token: 1.25; 1.6 and 0.625, whose geometric mean is 1; 0.5; 1; 1.
RATIOS = [1.25, 1.6, 0.625, 0.5, 1.0, 1.0]


@dataclass(frozen=True)
class Preset:
    advantages: list[float]  # one per token
    loss: float  # sum over tokens
    reward_norm: Norm
    adv_norm: Norm | None = None
    loss_settings: dict[str, Any] = field(default_factory=dict)


def norm(mean: Level | None, std: Level | None, *, leave_one_out: bool = False) -> Norm:
    return Norm(mean, std, leave_one_out=leave_one_out, unbiased=False)


R2, H2 = math.sqrt(2), math.sqrt(0.5)
# Batch of five rewards: mean 3/5, variance 3/5 · 2/5 = 0.24.
L = 1 / math.sqrt(0.24)
# Batch of six tokens with √2, −1/√2 three times, 0, 0: mean −√2/12, mean square (2 + 1.5)/6.
MU = -R2 / 12
SIGMA = math.sqrt(3.5 / 6 - MU**2)
ADV = [(a - MU) / SIGMA for a in (R2, -H2, -H2, -H2, 0, 0)]

PRESETS = {
    # 1.25 exceeds 1 + 0.2 and is clipped to 1.2; 1.6 with A < 0 is not; 0.625 and 0.5 are clipped to 0.8.
    "GRPO": Preset([R2, -H2, -H2, -H2, 0, 0], -1.2 * R2 + H2 * (1.6 + 0.8 + 0.8), norm("group", "group")),
    "GRPO with batch advantage norm": Preset(
        ADV,
        -(1.2 * ADV[0] + ADV[1] * (1.6 + 0.8 + 0.8) + ADV[4] * 2),
        norm("group", "group"),
        norm("batch", "batch"),
    ),
    "Dr.GRPO": Preset([2 / 3, -1 / 3, -1 / 3, -1 / 3, 0, 0], -1.2 * 2 / 3 + (1.6 + 0.8 + 0.8) / 3, norm("group", None)),
    "RLOO": Preset(
        [1, -0.5, -0.5, -0.5, 0, 0], -1.2 + 0.5 * (1.6 + 0.8 + 0.8), norm("group", None, leave_one_out=True)
    ),
    "LitePPO": Preset(
        [2 / 3 * L, -L / 3, -L / 3, -L / 3, 0, 0],
        L * (-1.2 * 2 / 3 + (1.6 + 0.8 + 0.8) / 3),
        norm("group", "batch"),
    ),
    # The second sample's two tokens share the ratio 1, which is not clipped.
    "GSPO": Preset(
        [R2, -H2, -H2, -H2, 0, 0],
        -1.2 * R2 + H2 * (1 + 1 + 0.8),
        norm("group", "group"),
        loss_settings={"ratio_level": "sequence"},
    ),
    # 1.25 is within 1 + 0.28.
    "DAPO": Preset(
        [R2, -H2, -H2, -H2, 0, 0],
        -1.25 * R2 + H2 * (1.6 + 0.8 + 0.8),
        norm("group", "group"),
        loss_settings={"eps_clip_higher": 0.28},
    ),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_gives_the_numbers_worked_by_hand(name: str) -> None:
    preset = PRESETS[name]
    rewards_B = normalize_rewards(torch.tensor(REWARDS), GROUPS, preset.reward_norm, groups=2, reduce=one_rank)
    rewards_T, _ = token_rewards(rewards_B, MASK, CU_SEQLENS)
    advantages = gae(rewards_T, MASK, CU_SEQLENS)
    if preset.adv_norm is not None:
        advantages = normalize_advantages(
            advantages, MASK, CU_SEQLENS, GROUPS, preset.adv_norm, groups=2, reduce=one_rank
        )
    assert advantages.tolist() == pytest.approx(preset.advantages, abs=1e-4)
    loss, _ = ppo_loss(
        torch.tensor(RATIOS).log(),
        prox_logp_T=torch.zeros(6),
        behav_logp_T=None,
        advantages_T=advantages,
        loss_mask_T=MASK,
        cu_seqlens=CU_SEQLENS,
        eps_clip=0.2,
        **preset.loss_settings,
    )
    assert loss.item() == pytest.approx(preset.loss, abs=2e-4)


def test_dapo_also_rejects_equal_groups_and_penalises_long_responses() -> None:
    assert rewards_differ(REWARDS[:3])
    assert not rewards_differ(REWARDS[3:])
    penalty = overlong_penalty(torch.tensor([16, 18, 20]), max_new_tokens=20, overlong_tokens=4, factor=1.0)
    assert (torch.tensor(REWARDS[:3]) + penalty).tolist() == [1.0, -0.5, -1.0]
