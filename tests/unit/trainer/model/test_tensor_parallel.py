"""Layouts that do not divide a model are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    ApertusConfig,
    ApertusForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from areal_trainer.model.tensor_parallel import check_division, plan

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 50,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
}


def qwen3(**changes: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return Qwen3ForCausalLM(Qwen3Config(**(SIZES | changes)))


@pytest.mark.parametrize(
    ("tensor", "context", "options", "message"),
    [
        (2, 3, {}, "tensor 2 × context 3, which does not divide the 8 attention heads of Qwen3ForCausalLM"),
        (8, 1, {}, "does not divide the 4 key-value heads"),
        (4, 1, {}, "does not divide the size 50 of model.layers.0.mlp.gate_proj"),
        (1, 2, {"packed": False}, "context is 2, which divides packed tokens"),
        (2, 1, {"has_adapters": True}, "adapters .* are not divided"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(
    tensor: int, context: int, options: dict[str, bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_division(qwen3(), tensor=tensor, context=context, **({"packed": True, "has_adapters": False} | options))


def test_a_layout_that_divides_the_model_is_accepted() -> None:
    check_division(qwen3(), tensor=2, context=4, packed=True, has_adapters=False)


def test_a_family_without_a_plan_is_refused() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=4))
    with pytest.raises(ValueError, match="transformers has no plan for dividing the layers of GPT2LMHeadModel"):
        plan(model, 2)


def test_a_plan_that_leaves_out_a_parameter_among_divided_ones_is_refused() -> None:
    with torch.device("meta"):
        model = ApertusForCausalLM(ApertusConfig(**(SIZES | {"intermediate_size": 48})))
    with pytest.raises(
        ValueError, match=r"leaves model\.layers\.0\.mlp\.act_fn.* out, whose gradient would then be a part"
    ):
        plan(model, 2)
