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

KINDS = sorted(FAMILIES.keys() - {"gpt-sw3"})  # another name of gpt2
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


def encoder_parameters(model: Any) -> int:
    """Those of an image encoder."""
    return sum(p.numel() for name, p in model.named_parameters() if "vision" in name or "multi_modal" in name)


def config_of(kind: str) -> Any:
    config = CONFIG_MAPPING[kind]()
    text = config.get_text_config()
    for key, value in SIZES.items():
        if hasattr(text, key):
            setattr(text, key, value)
    for key in ("num_experts", "num_local_experts"):
        if hasattr(text, key):
            setattr(text, key, 4)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:3]
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_of_a_family_are_those_of_transformers(kind: str) -> None:
    config = config_of(kind)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # An image encoder's embeddings and projections are left out.
    encoder = encoder_parameters(model)
    shape = ModelShape.of_config({**json.loads(config.to_json_string(use_diff=False)), "model_type": kind})
    assert shape.parameters - shape.vision == pytest.approx(model.num_parameters() - encoder, rel=1e-3)
    assert shape.vision == pytest.approx(encoder, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_tied_by_default_where_transformers_ties_them(kind: str) -> None:
    config = json.loads(config_of(kind).to_json_string(use_diff=False))
    for part in (config, config.get("text_config", {})):
        part.pop("tie_word_embeddings", None)
    expected = CONFIG_MAPPING[kind]().get_text_config().tie_word_embeddings
    assert ModelShape.of_config({**config, "model_type": kind}).tied is expected


OPTIONAL = (
    *("num_key_value_heads", "head_dim", "attention_bias", "multi_query", "n_inner", "intermediate_size"),
    "vocab_size",
)
# Helium in transformers needs heads that divide the hidden size; Gemma 3 states its sizes in text_config.
STATED = {"helium", "gemma3"}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - STATED))
def test_what_config_json_leaves_out_counts_as_in_transformers_or_is_refused(kind: str) -> None:
    config = json.loads(config_of(kind).to_json_string(use_diff=False)) | {"model_type": kind}
    config |= {"num_attention_heads": 40, "n_head": 40, "hidden_size": 1280, "n_embd": 1280}  # unlike every default
    for key in (key for key in OPTIONAL if key in config):
        rest = {name: value for name, value in config.items() if name != key}
        try:
            counted = ModelShape.of_config(rest).parameters
            with torch.device("meta"):
                expected = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind].from_dict(rest)).num_parameters()
        except (ValueError, TypeError):  # refused here, or transformers cannot build the model without the key
            continue
        assert counted == pytest.approx(expected, rel=1e-3), key


# What the config.json of google/gemma-3-4b-it says of its language model; the rest are defaults of transformers.
GEMMA3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}


def test_a_published_gemma_3_that_leaves_out_heads_and_vocabulary_is_sized() -> None:
    config = CONFIG_MAPPING["gemma3_text"](**GEMMA3_4B["text_config"])
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).num_parameters()
    assert ModelShape.of_config(GEMMA3_4B).parameters == pytest.approx(expected, rel=1e-3)
