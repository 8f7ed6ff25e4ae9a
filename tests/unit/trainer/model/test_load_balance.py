"""The auxiliary loss is transformers' load_balancing_loss_func of each pass, averaged by trained tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from areal_trainer.batch import pack
from areal_trainer.model.layout import group_by_prompt, lay_out
from areal_trainer.model.policy import Policy
from areal_trainer.trajectory import Trajectory
from support import balance_ranks
from support.balance_ranks import FIRST, gradient_step
from support.tiny_policy import EXPERTS, actor_config, plain_model, random_trajectories, save_tiny_model, with_experts


@pytest.fixture(params=EXPERTS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", request.param, tied=False, **EXPERTS[request.param])


def reference(model: Path, trajectories: list[Trajectory]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """transformers' loss of a padded batch, padding excluded, and its gradients."""
    longest = max(len(trajectory) for trajectory in trajectories)
    ids = torch.zeros(len(trajectories), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, trajectory in enumerate(trajectories):
        ids[row, : len(trajectory)] = torch.from_numpy(trajectory.input_ids)
        mask[row, : len(trajectory)] = 1
    plain = plain_model(model)
    logits = plain(input_ids=ids, attention_mask=mask, output_router_logits=True).router_logits
    loss = load_balancing_loss_func(logits, 4, 2, mask)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}


def found(model: Path, trajectories: list[Trajectory], **changes: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Our loss of one pass without shared prompts, and its gradients."""
    config = actor_config(model, router_aux_loss_coef=0.1, **changes)
    policy = Policy(config, device="cpu", total_steps=10, seed=1)
    policy.model.train()
    batch = pack(trajectories)
    logp_N, _ = policy.model(lay_out(batch, group_by_prompt(batch, cost=None)))
    loss = policy.model.balance_loss()
    assert loss is not None
    (loss + 0 * logp_N.sum()).backward()
    named = policy.model.causal_lm.named_parameters()
    return loss.detach(), {name: p.grad for name, p in named if p.grad is not None and bool(p.grad.any())}


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"attn_impl": "eager"}])
def test_the_loss_of_a_pass_and_its_gradients_are_transformers(model: Path, changes: dict[str, Any]) -> None:
    trajectories = random_trajectories()
    ours, gradients = found(model, trajectories, **changes)
    expected, expected_gradients = reference(model, trajectories)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert sum("gate.weight" in name for name in gradients) == 2
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4)
    assert all(name in gradients for name, g in expected_gradients.items() if g.abs().max() > 1e-5)


def test_replayed_experts_are_the_load(model: Path) -> None:
    """With two of four experts for every token, E · Σ f · p = 4 · (p_0 + p_1): twice their share of the probability."""
    trajectories = with_experts(random_trajectories())
    first = [
        msgspec.structs.replace(t, experts=np.broadcast_to(np.uint8([0, 1]), (len(t), 2, 2))) for t in trajectories
    ]
    last = [msgspec.structs.replace(t, experts=np.broadcast_to(np.uint8([2, 3]), (len(t), 2, 2))) for t in trajectories]
    losses = [float(found(model, given, router_replay=True)[0]) for given in (first, last)]
    assert all(0 < loss < 4 for loss in losses)
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)


def test_an_update_reports_the_loss_and_adds_it(model: Path) -> None:
    trajectories = random_trajectories()
    change, numbers = gradient_step(model, trajectories)
    assert numbers["grpo_actor/router_aux_loss/avg"] > 0
    half, _ = gradient_step(model, trajectories, router_aux_loss_coef=0.5)
    router = next(name for name in change if name.endswith("gate.weight"))
    assert change[router].abs().max() > 0
    torch.testing.assert_close(half[router], change[router] / 2, atol=1e-6, rtol=1e-4)
    none, without = gradient_step(model, trajectories, router_aux_loss_coef=0.0)
    assert not any(tensor.any() for tensor in none.values())
    assert "grpo_actor/router_aux_loss/avg" not in without


def test_two_ranks_average_their_passes_by_trained_tokens_and_share_those_that_they_divide(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "qwen3_moe", tied=False, **EXPERTS["qwen3_moe"])
    script = Path(balance_ranks.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(model), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trajectories = random_trajectories()
    parts = [trajectories[:FIRST], trajectories[FIRST:]]
    weight = [sum(trajectory.completion_len for trajectory in part) for part in parts]
    (first, one), (second, two) = (gradient_step(model, part) for part in parts)
    changes, numbers = torch.load(tmp_path / "d2.pt")
    for name, change in changes.items():
        expected = (weight[0] * first[name] + weight[1] * second[name]) / sum(weight)
        torch.testing.assert_close(change, expected, atol=1e-5, rtol=0)
    key = "grpo_actor/router_aux_loss/avg"
    assert numbers[key] == pytest.approx((weight[0] * one[key] + weight[1] * two[key]) / sum(weight), rel=1e-5)
    whole, of_one = gradient_step(model, trajectories)
    changes, numbers = torch.load(tmp_path / "d1c2.pt")
    for name, change in changes.items():
        torch.testing.assert_close(change, whole[name], atol=1e-5, rtol=0)
    assert numbers[key] == pytest.approx(of_one[key], rel=1e-5)


def test_a_model_without_the_loss_is_refused(tmp_path: Path) -> None:
    config = actor_config(save_tiny_model(tmp_path), router_aux_loss_coef=0.1)
    with pytest.raises(ValueError, match=r"actor\.router_aux_loss_coef is above 0, but transformers defines no"):
        Policy(config, device="cpu", total_steps=10, seed=1)
