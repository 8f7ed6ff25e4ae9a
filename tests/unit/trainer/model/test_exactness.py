"""Architectures whose packed log-probs are not those of single sequences are refused before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from areal_trainer.model.exactness import check_exactness
from areal_trainer.model.language_model import LanguageModel, disable_dropout, has_dropout
from support.tiny_policy import actor_config

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
MAMBA = {
    "layer_types": ["mamba", "attention"],
    "shared_intermediate_size": 48,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"]}
ROTARY = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def save(directory: Path, kind: str, **settings: Any) -> Path:
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**(COMMON | settings))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def load(path: Path, **changes: Any) -> LanguageModel:
    return LanguageModel(actor_config(path, **changes), section="actor", device=torch.device("cpu"), temperature=1.0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "olmo2", "phi3", "gemma", "smollm3"])
def test_attention_alone_is_exact(tmp_path: Path, kind: str, attention: str) -> None:
    model = load(save(tmp_path, kind), attn_impl=attention)
    model.train()
    check_exactness(model, section="actor")
    assert model.training


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("lfm2", CONVOLUTIONS, "sequences of a pass change each other's log-probs by up to"),
        ("granitemoehybrid", MAMBA, "sequences of a pass change each other's log-probs by up to"),
        ("gpt_oss", {"num_local_experts": 4}, "the model's attention uses s_aux"),
        ("doge", {}, "cannot compute log-probs"),
    ],
)
def test_architectures_that_packing_changes_need_padding(
    tmp_path: Path, kind: str, settings: dict[str, Any], reason: str
) -> None:
    path = save(tmp_path, kind, **settings)
    with pytest.raises(ValueError, match=r"set actor\.attn_impl: eager") as caught:
        check_exactness(load(path), section="actor")
    assert str(caught.value).startswith("actor.path: ")
    assert reason in str(caught.value)
    check_exactness(load(path, attn_impl="eager"), section="actor")


def test_a_model_with_its_own_table_of_attentions_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "gptj", n_embd=32, n_layer=2, n_head=4, rotary_dim=8)
    with pytest.raises(ValueError, match=r"gptj implements its own attention; set actor\.attn_impl: eager"):
        load(path)


def test_a_difference_from_transformers_is_found(tmp_path: Path) -> None:
    model = load(save(tmp_path, "qwen3"))

    def scale_logits(_module: Any, _arguments: Any, output: Any) -> None:
        output.logits = output.logits * 1.1

    model.causal_lm.register_forward_hook(scale_logits)
    with pytest.raises(ValueError, match=r"log-probs differ by .* nats per token from those of transformers"):
        check_exactness(model, section="actor")


def test_rotary_embeddings_that_depend_on_the_longest_sequence_bound_the_length(tmp_path: Path) -> None:
    check_exactness(load(save(tmp_path / "long", "llama", rope_parameters=ROTARY)), section="actor")
    short = save(tmp_path / "short", "llama", rope_parameters=ROTARY, max_position_embeddings=32)
    with pytest.raises(ValueError, match="beyond 32 the rotary embedding of LlamaForCausalLM depends on the longest"):
        check_exactness(load(short), section="actor")


@pytest.mark.parametrize("key", ["final_logit_softcapping", "logit_scale"])
def test_changed_logits_of_the_text_part_are_refused(tmp_path: Path, key: str) -> None:
    path = save(tmp_path, "llama")
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: 30.0}))
    with pytest.raises(ValueError, match=f"has {key}, which the trainer does not compute"):
        load(path)


@pytest.mark.parametrize(
    ("kind", "dropout"),
    [
        ("qwen3", {"attention_dropout": 0.3}),
        ("gpt2", {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}),
        ("gpt_bigcode", {"attn_pdrop": 0.3, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
        ("opt", {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3, "ffn_dim": 48}),
    ],
)
def test_dropout_is_found_and_disabled_whatever_a_family_calls_it(
    tmp_path: Path, kind: str, dropout: dict[str, float]
) -> None:
    model = load(save(tmp_path, kind, **dropout)).train()
    ids = torch.arange(40)[None]

    def hidden() -> torch.Tensor:
        return torch.as_tensor(model.causal_lm.base_model(input_ids=ids, use_cache=False).last_hidden_state)

    model.causal_lm.set_attn_implementation("eager")
    assert has_dropout(model)
    disable_dropout(model)
    assert not has_dropout(model)
    assert torch.equal(hidden(), hidden())
