"""Mixture-of-experts models train like transformers computes them, and keep the names of their published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from areal_trainer.batch import pack
from areal_trainer.model.experts import ExpertLoad, routers
from areal_trainer.model.policy import Policy
from areal_trainer.model.published_names import PublishedNames
from areal_trainer.ranks import joined
from support.policy_ranks import train
from support.tiny_policy import EXPERTS, actor_config, plain_logprobs, plain_model, random_trajectories, save_tiny_model


@pytest.fixture(params=EXPERTS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", request.param, tied=False, **EXPERTS[request.param])


def make_policy(model: Path, **changes: Any) -> Policy:
    return Policy(actor_config(model, use_decoupled_loss=True, **changes), device="cpu", total_steps=10, seed=1)


def expected_logprobs(model: Path) -> torch.Tensor:
    plain = plain_model(model)
    with torch.no_grad():
        return torch.cat([plain_logprobs(plain, trajectory) for trajectory in random_trajectories()])


def test_log_probs_are_those_of_transformers_and_of_the_saved_model_after_a_step(model: Path) -> None:
    policy, trajectories = make_policy(model), random_trajectories()
    policy.check_exactness()
    torch.testing.assert_close(policy.logprobs(pack(trajectories)), expected_logprobs(model), atol=1e-5, rtol=0)
    numbers = train(policy, trajectories)
    policy.save_hf(saved := model.parent / "saved")
    torch.testing.assert_close(policy.logprobs(pack(trajectories)), expected_logprobs(saved), atol=1e-5, rtol=0)
    before, after = (load_file(path / "model.safetensors") for path in (model, saved))
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert all(not torch.equal(after[name], before[name]) for name in after if ".experts." in name)
    assert numbers["grpo_actor/expert_load_max"] >= 1
    assert 0 <= numbers["grpo_actor/experts_unused"] < 1


def test_routers_choose_in_float32_beside_bfloat16(model: Path) -> None:
    seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def note(router: nn.Module, given: tuple[torch.Tensor], made: object) -> None:
        assert isinstance(router.weight, torch.Tensor)
        seen.add((given[0].dtype, router.weight.dtype))

    with joined("cpu"):
        policy = make_policy(model, dtype="bfloat16")
        for router in routers(policy.model):
            router.register_forward_hook(note)
        policy.logprobs(pack(random_trajectories()))
    assert seen == {(torch.float32, torch.float32)}


class _Router(nn.Module):
    """Four experts; the input is the choice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 2))

    def forward(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return chosen.float(), chosen


def test_load_is_that_of_the_busiest_expert_over_the_mean() -> None:
    router = _Router()
    load = ExpertLoad(nn.ModuleList([router]))
    router(torch.tensor([[0, 1], [0, 2], [0, 1]]))
    router.eval()(torch.tensor([[3, 3]]))  # no training pass
    assert load.take() == {"expert_load_max": 2.0, "experts_unused": 0.25}  # 3, 2, 1 and 0 tokens
    assert load.take() == {}


def test_a_parameter_whose_tensors_need_others_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def joint(_model: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"all": torch.cat([tensor.flatten() for tensor in tensors.values()])}

    monkeypatch.setattr("areal_trainer.model.published_names.revert_weight_conversion", joint)
    plain = plain_model(save_tiny_model(tmp_path))
    with pytest.raises(ValueError, match=r"actor\.path: Qwen3ForCausalLM has other tensor names in memory"):
        PublishedNames(plain, section="actor")
