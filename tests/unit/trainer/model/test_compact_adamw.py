"""AdamW with moments in fewer bytes or in host memory, against PyTorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from areal_trainer.checkpoint import LoopState, RunState, load_state
from areal_trainer.model.compact_adamw import MOMENTS, CompactAdamW
from areal_trainer.model.policy import Policy
from areal_trainer.recovery_writer import RecoveryWriter
from support.policy_ranks import train, weights
from support.tiny_policy import actor_config, random_trajectories, save_tiny_model

OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
BFLOAT16 = {"lr": 1e-2, "beta2": 0.95, "state_dtype": "bfloat16", "offload": True}


def two_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((400, 5), (7,))]


def run(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, steps: int) -> None:
    """Steps with random gradients around 1."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = 1 + torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_float32_moments_in_host_memory_give_the_steps_of_torchs_adamw() -> None:
    plain, compact = two_parameters(), two_parameters()
    reference = torch.optim.AdamW(plain, fused=True, **OPTIONS)
    optimizer = CompactAdamW(compact, dtype=torch.float32, offload=True, **OPTIONS)
    run(reference, plain, steps=20)
    run(optimizer, compact, steps=20)
    for one, other in zip(plain, compact, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
        for name in (*MOMENTS, "step"):
            torch.testing.assert_close(reference.state[one][name], optimizer.state[other][name], atol=0, rtol=0)


@pytest.mark.parametrize("beta2", [0.95, 0.99])
def test_bfloat16_moments_follow_float32_moments_over_many_steps(beta2: float) -> None:
    plain, compact = two_parameters(), two_parameters()
    options = OPTIONS | {"betas": (0.9, beta2)}
    reference = torch.optim.AdamW(plain, fused=True, **options)
    optimizer = CompactAdamW(compact, dtype=torch.bfloat16, offload=False, **options)
    run(reference, plain, steps=500)
    run(optimizer, compact, steps=500)
    exact, kept = reference.state[plain[0]], optimizer.state[compact[0]]
    assert kept["exp_avg"].dtype == kept["exp_avg_sq"].dtype == torch.bfloat16
    assert float((kept["exp_avg"] - exact["exp_avg"]).abs().mean() / exact["exp_avg"].abs().mean()) < 0.01
    # The root of the second moment, which divides a step: 4 % is the bound of a learning rate that nobody tunes closer.
    ratio = (kept["exp_avg_sq"].float() / exact["exp_avg_sq"]).sqrt()
    assert float((ratio - 1).abs().mean()) < 0.04
    moved, expected = compact[0] - two_parameters()[0], plain[0] - two_parameters()[0]
    assert float((moved - expected).detach().norm() / expected.detach().norm()) < 0.02


def test_moments_of_parameters_on_a_gpu_are_in_pinned_host_memory() -> None:
    with FakeTensorMode(), patch.object(torch.cuda, "synchronize") as synchronized:
        parameter = nn.Parameter(torch.empty(6, 4, device="cuda"))
        parameter.grad = torch.empty_like(parameter)
        optimizer = CompactAdamW([parameter], dtype=torch.bfloat16, offload=True, **OPTIONS)
        optimizer.step()
        state = optimizer.state[parameter]
    assert {state[name].device.type for name in MOMENTS} == {"cpu"}
    assert parameter.device.type == state["step"].device.type == "cuda"
    synchronized.assert_called_once()


def policy_of(model: Path, **optimizer: Any) -> Policy:
    return Policy(actor_config(model, optimizer=optimizer), device="cpu", total_steps=10, seed=1)


def test_a_policy_resumes_exactly_from_a_checkpoint_of_its_bfloat16_moments(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    policy, resumed = policy_of(model, **BFLOAT16), policy_of(model, **BFLOAT16)
    train(policy, random_trajectories(), steps=3)
    writer = RecoveryWriter(tmp_path, keep=1)
    writer.start(1, policy, LoopState(RunState(step=1), {}, {}))
    writer.wait()
    load_state(tmp_path / "recover/step1", resumed)
    for one in (policy, resumed):
        train(one, random_trajectories(), steps=2)
    first, second = weights(policy), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    kept = resumed.state_dict()["optimizer"]["state"]["model.norm.weight"]
    assert {kept[name].dtype for name in MOMENTS} == {torch.bfloat16}


def test_moments_of_a_checkpoint_are_rounded_when_their_type_has_changed(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    policy, resumed = policy_of(model, lr=1e-2, beta2=0.95), policy_of(model, **BFLOAT16)
    train(policy, random_trajectories())
    writer = RecoveryWriter(tmp_path, keep=1)
    writer.start(1, policy, LoopState(RunState(step=1), {}, {}))
    writer.wait()
    load_state(tmp_path / "recover/step1", resumed)
    exact, rounded = (one.state_dict()["optimizer"]["state"] for one in (policy, resumed))
    for name, tensors in exact.items():
        for key in MOMENTS:
            assert torch.equal(rounded[name][key], tensors[key].bfloat16())
