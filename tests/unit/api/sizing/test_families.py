"""Traits of model families, compared with the classes of transformers that the trainer loads."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from areal_api.sizing.families import FAMILIES
from areal_api.sizing.model_shape import ModelShape

OTHERS = ["llama", "mistral", "ministral3", "phi3", "glm", "granite", "hyperclovax"]  # like Llama
NOT_TRAINED = {"qwen2_moe", "qwen3_moe", "gpt-sw3"}  # mixtures of experts; another name of gpt2
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim"), 256),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), 640),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
    "pad_token_id": 0,
}


def config_of(kind: str) -> Any:
    config = CONFIG_MAPPING[kind]()
    text = config.get_text_config()
    for key, value in SIZES.items():
        if hasattr(text, key):
            setattr(text, key, value)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:3]
    return config


@pytest.mark.parametrize("kind", sorted({*FAMILIES, *OTHERS} - NOT_TRAINED))
def test_the_parameters_of_a_family_are_those_of_transformers(kind: str) -> None:
    config = config_of(kind)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # An image encoder's embeddings and projections are left out.
    encoder = sum(p.numel() for name, p in model.named_parameters() if "vision" in name or "multi_modal" in name)
    shape = ModelShape.of_config({**json.loads(config.to_json_string(use_diff=False)), "model_type": kind})
    assert shape.parameters - shape.vision == pytest.approx(model.num_parameters() - encoder, rel=1e-3)
    assert shape.vision == pytest.approx(encoder, rel=0.1)


@pytest.mark.parametrize("kind", sorted({*FAMILIES, *OTHERS} - NOT_TRAINED))
def test_embeddings_are_tied_by_default_where_transformers_ties_them(kind: str) -> None:
    config = json.loads(config_of(kind).to_json_string(use_diff=False))
    for part in (config, config.get("text_config", {})):
        part.pop("tie_word_embeddings", None)
    expected = CONFIG_MAPPING[kind]().get_text_config().tie_word_embeddings
    assert ModelShape.of_config({**config, "model_type": kind}).tied is expected
