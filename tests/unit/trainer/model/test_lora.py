"""Adapters: what is trained, merged, published, saved and restored, against plain arithmetic and PEFT itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from areal_api.actor import PPOActorConfig
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.model.lora import ADAPTER_DIR
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import Ranks
from areal_trainer.weights.disk import publish_to_disk
from support.tiny_policy import KINDS, actor_config, plain_logprobs, plain_model, random_trajectories, save_tiny_model

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def policy_of(path: Path, **changes: Any) -> Policy:
    config = actor_config(path, **({"lora": {"rank": 4, "alpha": 8.0}} | changes))
    return Policy(config, device="cpu", total_steps=10, seed=1)


def advantages(batch: PackedBatch) -> Tensor:
    return torch.randn(len(batch.input_ids_T), generator=torch.Generator().manual_seed(3)) * batch.loss_mask_T


def trained(path: Path, *, steps: int = 3, **changes: Any) -> Policy:
    policy, batch = policy_of(path, **changes), pack(random_trajectories())
    for _ in range(steps):
        policy.update(batch, advantages_T=advantages(batch))
    return policy


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.named_full_tensors()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_before_the_first_step_the_model_is_the_base_model(tmp_path: Path, kind: str, tied: bool) -> None:
    path = save_tiny_model(tmp_path, kind, tied=tied)
    base = load_file(path / "model.safetensors")
    base = {name: tensor for name, tensor in base.items() if not name.endswith("e_score_correction_bias")}  # a buffer
    merged = weights(policy_of(path))
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], base[name]) for name in base)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_the_trainer_computes(tmp_path: Path, kind: str) -> None:
    path = save_tiny_model(tmp_path / "model", kind)
    policy = trained(path)
    policy.save_hf(tmp_path / "merged")
    trajectories = random_trajectories(seed=5)
    with torch.no_grad():
        model = plain_model(tmp_path / "merged")
        expected = torch.cat([plain_logprobs(model, one) for one in trajectories])
        unchanged = torch.cat([plain_logprobs(plain_model(path), one) for one in trajectories])
    torch.testing.assert_close(policy.logprobs(pack(trajectories)), expected, atol=3e-5, rtol=0)
    assert (expected - unchanged).abs().max() > 1e-3


def test_the_saved_adapters_load_in_peft(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    trained(path).save_hf(tmp_path / "merged")
    adapted = PeftModel.from_pretrained(plain_model(path), tmp_path / "merged" / ADAPTER_DIR)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = plain_model(tmp_path / "merged")(ids).logits
        torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert adapted.peft_config["default"].base_model_name_or_path == str(path)


def test_only_the_chosen_layers_change_and_only_adapters_are_trained(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    base = dict(plain_model(path).named_parameters())
    policy = trained(path, lora={"rank": 2, "target_modules": ["q_proj", "down_proj"]})
    changed = {name for name, tensor in policy.named_full_tensors() if not torch.equal(tensor, base[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}
    assert len(changed) == 4
    learning = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in learning)
    rank = max(torch.linalg.matrix_rank(weights(policy)[name] - base[name], atol=1e-5) for name in changed)
    assert rank <= 2


def test_in_a_mixture_of_experts_dense_layers_and_shared_experts_get_no_adapters(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "glm4_moe")
    names = [name for name, _ in policy_of(path).model.named_parameters() if ".lora_A." in name]
    assert {name.split(".")[-5] for name in names} == {"self_attn"}
    with pytest.raises(ValueError, match=r"'gate_proj' is no linear layer of Glm4MoeForCausalLM; choose of k_proj"):
        policy_of(path, lora={"rank": 2, "target_modules": ["gate_proj"]})


def test_the_first_step_is_that_of_the_product(tmp_path: Path) -> None:
    """B starts at 0, so after one step of gradient descent W changes by −lr · scaling² · (dL/dW · Aᵀ) · A."""
    path = save_tiny_model(tmp_path)
    sgd = {"type": "sgd", "lr": 0.1, "weight_decay": 0.0, "gradient_clipping": 1e9}
    full, policy = policy_of(path, lora=None, optimizer=sgd), policy_of(path, optimizer=sgd)
    batch, base = pack(random_trajectories()), weights(full)
    matrices = {
        name.replace(".lora_A.default", ""): parameter.detach().clone()
        for name, parameter in policy.model.causal_lm.named_parameters()
        if ".lora_A." in name
    }
    for one in (full, policy):
        one.update(batch, advantages_T=advantages(batch))
    after, merged = weights(full), weights(policy)
    scaling = 8.0 / 4
    for name, a in matrices.items():
        step = (after[name] - base[name]) @ a.T @ a * scaling**2  # of the whole matrix: −lr · dL/dW
        torch.testing.assert_close(merged[name] - base[name], step, atol=1e-6, rtol=1e-4)
    assert len(matrices) == 2 * len(LINEAR)


def test_a_checkpoint_holds_adapters_alone_and_continues(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    policy, batch = trained(path, steps=2), pack(random_trajectories())
    state = policy.state_dict()
    assert all(".lora_" in name for part in (state["model"], state["optimizer"]["state"]) for name in part)
    copied = {
        "model": {name: tensor.clone() for name, tensor in state["model"].items()},
        "optimizer": {
            "state": {
                name: {key: tensor.clone() for key, tensor in tensors.items()}
                for name, tensors in state["optimizer"]["state"].items()
            }
        },
        "steps_done": state["steps_done"].clone(),
    }
    resumed = policy_of(path)
    resumed.load_state_dict(copied)
    for one in (policy, resumed):
        one.update(batch, advantages_T=advantages(batch))
    first, second = weights(policy), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_published_weights_are_merged(tmp_path: Path) -> None:
    policy = trained(save_tiny_model(tmp_path / "model"))
    published = publish_to_disk(policy, run=tmp_path, version=1, dtype=torch.float32, ranks=Ranks.current())
    tensors = dict(plain_model(published).named_parameters())
    merged = weights(policy)
    assert merged.keys() == tensors.keys()
    assert all(torch.equal(merged[name], tensors[name]) for name in merged)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "w1", "model.layers.0.self_attn.q_proj"])
def test_a_target_that_is_no_linear_layer_is_refused_with_those_that_are(tmp_path: Path, target: str) -> None:
    path = save_tiny_model(tmp_path, tied=False)
    with pytest.raises(ValueError, match=r"actor\.lora\.target_modules: .* is no linear layer") as caught:
        policy_of(path, lora={"target_modules": ["q_proj", target]})
    assert target in str(caught.value)
    assert all(name in str(caught.value) for name in LINEAR)


@pytest.mark.parametrize(
    "lora", [{"rank": 0}, {"rank": 2**20}, {"alpha": 0}, {"alpha": float("inf")}, {"target_modules": []}]
)
def test_a_wrong_key_is_refused_by_name(lora: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"lora\.{next(iter(lora))}"):
        PPOActorConfig(path=".", lora=lora)
