"""Models whose experts ranks cannot divide are refused. test_parallel_ranks.py has those that they can."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from areal_trainer.model.expert_parallel import experts_of
from support.tiny_policy import plain_model, save_tiny_model

SIZES = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def test_the_experts_of_every_layer_are_found(tmp_path: Path) -> None:
    plain = plain_model(save_tiny_model(tmp_path, "qwen3_moe", tied=False, **SIZES))
    assert [module.num_experts for module in experts_of(plain, 3)] == [6, 6]


def test_a_size_that_does_not_divide_the_experts_is_refused(tmp_path: Path) -> None:
    plain = plain_model(save_tiny_model(tmp_path, "qwen3_moe", tied=False, **SIZES))
    with pytest.raises(ValueError, match=r"parallel\.expert is 4, which does not divide the 6 experts of Qwen3Moe"):
        experts_of(plain, 4)


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parallel\.expert is 2, but Qwen3ForCausalLM has no routers with experts"):
        experts_of(plain_model(save_tiny_model(tmp_path)), 2)


def test_experts_in_tensors_that_are_not_of_a_whole_layer_are_refused(tmp_path: Path) -> None:
    plain = plain_model(save_tiny_model(tmp_path, "qwen3_moe", tied=False, **SIZES))
    experts_of(plain, 2)[1].register_parameter("scale", nn.Parameter(plain.lm_head.weight[0]))
    with pytest.raises(ValueError, match="are not one tensor for all of a layer"):
        experts_of(plain, 2)
