"""Find out which model families the trainer computes exactly, with tiny random models of each.

Usage: ``python hack/families.py``. It takes some minutes and writes trained_types.json, which ``grpo check`` reads, and
docs/models.md. A family that cannot be built tiny is listed at the end.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, __version__
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from areal_api.actor import PPOActorConfig
from areal_api.sizing.trained_types import FILE
from areal_trainer.model.policy import LogprobModel
from areal_trainer.model.router_replay import RouterReplay
from areal_trainer.model.tensor_parallel import plan

OUTPUT = Path(__file__).parent.parent / "docs/models.md"
MAX_PARAMETERS = 3_000_000
# Sizes under the names that configurations of transformers use for them.
SIZES: dict[str, int | float | bool] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "attention_hidden_size", "lru_width", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "decoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_topk", "mamba_expand"), 2),
    **dict.fromkeys(("multi_query_group_num", "linear_num_key_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "kv_channels", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8
    ),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "mamba_n_groups"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 256),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 97),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    "q_lora_rank": 16,
}
LAYERS = {
    "lfm2": ["conv", "full_attention"],
    "lfm2_moe": ["conv", "full_attention"],
    "granitemoehybrid": ["mamba", "attention"],
}
FURTHER: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
HEADER = """# Model families

Before its first step the trainer compares log-probs of a packed pass with those that transformers computes one sequence
at a time (`areal_trainer/model/exactness.py`). This table is the result for a tiny random model of each causal language
model in transformers {transformers}, in float32 on a CPU; `python hack/families.py` writes it. It says nothing about
SGLang's support for a family: [SGLang's list](https://docs.sglang.io/supported_models/generative_models.html) does.
"""


def tiny_config(kind: str) -> PreTrainedConfig:
    """A configuration of the family with two layers, or one of each of its types."""
    text = CONFIG_MAPPING[kind]().get_text_config()
    settings: dict[str, Any] = {name: size for name, size in SIZES.items() if is_setting(text, name)}
    settings |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0} | FURTHER.get(kind, {})
    layers = LAYERS.get(kind)
    if layers is None and is_setting(text, "layer_types"):
        layers = list(dict.fromkeys(text.layer_types or ()))
    if layers:
        settings["layer_types"] = (layers * 2)[: max(2, len(layers))]
        settings["num_hidden_layers"] = len(settings["layer_types"])
    return type(text)(**settings)


def is_setting(config: PreTrainedConfig, name: str) -> bool:
    """Whether a configuration has a value of this name that can be chosen: some are computed from others."""
    computed = getattr(type(config), name, None)
    if isinstance(computed, property) and computed.fset is None:
        return False
    return name in vars(config) or name in config.attribute_map


def build(kind: str, directory: Path) -> str | None:
    """Save a tiny model; returns why there is none."""
    try:
        config = tiny_config(kind)
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(config).num_parameters()
        if size > MAX_PARAMETERS:
            return "not tiny"
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    except Exception as error:  # noqa: BLE001 - whatever a family's code raises, the others are listed
        return type(error).__name__
    return None


def problem(directory: Path, attention: str) -> str | None:
    """Why a model is refused with an attention implementation; None if it is exact."""
    config = PPOActorConfig(path=str(directory), dtype="float32", attn_impl=attention)  # type: ignore[arg-type]
    try:
        LogprobModel(config, section="actor", device="cpu", temperature=1.0).check_exactness()
    except ValueError as error:
        return str(error).removeprefix("actor.path: ").split("; ")[0].split(": ")[-1]
    return None


def main() -> None:
    """Write the file and the document."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    packed: list[str] = []
    padded: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, list[str]] = defaultdict(list)
    unbuilt: list[str] = []
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as name:
            if build(kind, Path(name)) is not None:
                unbuilt.append(kind)
                continue
            by_default, with_padding = problem(Path(name), "sdpa"), problem(Path(name), "eager")
        print(kind, by_default, with_padding, sep=" | ", flush=True)
        if by_default is None:
            packed.append(kind)
        elif with_padding is None:
            padded[general(by_default)].append(kind)
        else:
            refused[general(with_padding)].append(kind)
    found = {
        "transformers": __version__,
        "packed": packed,
        "tensor_parallel": [kind for kind in packed if can_be_divided(kind)],
        "router_replay": [kind for kind in packed if can_replay(kind)],
        "padded": dict(sorted(padded.items())),
        "refused": dict(sorted(refused.items())),
        "unbuilt": unbuilt,
    }
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    OUTPUT.write_text(document(found))


def can_be_divided(kind: str) -> bool:
    """Whether the trainer can divide the layers of a family over ranks."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(kind))
    try:
        plan(model, 2)
    except ValueError:
        return False
    return True


def can_replay(kind: str) -> bool:
    """Whether the routers of a family can use given experts."""
    model = AutoModelForCausalLM.from_config(tiny_config(kind))
    try:
        RouterReplay(model, section="actor")
    except ValueError:
        return False
    return True


def general(reason: str) -> str:
    """A reason without the class and the numbers of one model."""
    known = (
        "implements its own attention",
        "sequences of a pass change each other's log-probs",
        "other tensor names in memory than in its checkpoint",
        "a bias of the output embedding",
        "the model's attention uses s_aux",
        "log-probs differ",
    )
    computed = reason.partition(" has ")[2] if "does not compute" in reason else "cannot compute log-probs"
    return next((text for text in known if text in reason), computed)


def document(found: Mapping[str, Any]) -> str:
    """The document with the content of trained_types.json."""
    lines = ["| Families | Training |", "| --- | --- |", f"| {', '.join(found['packed'])} | exact, packed |"]
    lines += [
        f"| {', '.join(kinds)} | exact with `actor.attn_impl: eager`, which pads: {why} |"
        for why, kinds in found["padded"].items()
    ]
    lines += [f"| {', '.join(kinds)} | refused: {why} |" for why, kinds in found["refused"].items()]
    divided = f"With `actor.parallel.tensor`: {', '.join(found['tensor_parallel'])}."
    kinds = ", ".join(found["router_replay"])
    replayed = f"With `actor.router_replay`, of the families whose tiny model has routers: {kinds}."
    header = HEADER.format(transformers=found["transformers"])
    return (
        "\n".join(
            [
                header,
                *lines,
                "",
                divided,
                "",
                replayed,
                "",
                f"No tiny model could be built of: {', '.join(found['unbuilt'])}.",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
