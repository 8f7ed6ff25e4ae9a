"""Tensors of a model that are not trained, but belong to its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from areal_trainer.model.policy import Policy
from areal_trainer.ranks import Ranks, joined
from areal_trainer.weights.disk import BUFFERS, publish_to_disk, verify_published
from support.tiny_policy import actor_config, plain_model, save_tiny_model

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose router has biases that bfloat16 cannot hold."""
    path = save_tiny_model(tmp_path / "model", "glm4_moe", tied=False)
    tensors = load_file(path / "model.safetensors")
    tensors[BIAS] = torch.linspace(0.1, 0.9, len(tensors[BIAS]))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_saved_model_has_the_biases_of_its_routers(model: Path, tmp_path: Path, dtype: str, lora: object) -> None:
    with joined("cpu"):
        policy = Policy(actor_config(model, dtype=dtype, lora=lora), device="cpu", total_steps=1, seed=1)
        policy.save_hf(tmp_path / "saved")
    saved, before = plain_model(tmp_path / "saved").state_dict(), plain_model(model).state_dict()
    assert saved.keys() == before.keys()
    assert torch.equal(saved[BIAS].float(), before[BIAS].float())
    assert load_file(tmp_path / "saved" / BUFFERS).keys() == {BIAS}


def test_published_weights_have_them_and_the_manifest_proves_them(model: Path, tmp_path: Path) -> None:
    policy = Policy(actor_config(model), device="cpu", total_steps=1, seed=1)
    version = publish_to_disk(policy, run=tmp_path, version=1, dtype=torch.bfloat16, ranks=Ranks.current())
    verify_published(version)
    assert torch.equal(load_file(version / BUFFERS)[BIAS], load_file(model / "model.safetensors")[BIAS])
    (version / BUFFERS).unlink()
    with pytest.raises(ValueError, match=f"{BUFFERS} has None bytes"):
        verify_published(version)


def test_a_model_without_buffers_stays_one_file(tmp_path: Path) -> None:
    policy = Policy(actor_config(save_tiny_model(tmp_path / "model")), device="cpu", total_steps=1, seed=1)
    policy.save_hf(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").glob("*.safetensors*")] == ["model.safetensors"]
