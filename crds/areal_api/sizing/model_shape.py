"""The sizes of a decoder-only transformer, read from its config.json. No weights are needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 4 * 2**20
# Families whose q, k and v projections have biases although their config.json does not say so.
QKV_BIAS_FAMILIES = frozenset({"qwen2", "qwen2_moe"})
QK_NORM_FAMILIES = frozenset({"qwen3", "qwen3_moe"})


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model: H ``hidden``, I ``intermediate``, L ``layers``, V ``vocabulary``."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    longest: int | None
    experts: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the content of a config.json. Raises ``ValueError`` that names the missing or wrong key."""
        text = config.get("text_config")
        if isinstance(text, Mapping):
            config = {**config, **text}
        hidden, heads = _size(config, "hidden_size", "n_embd"), _size(config, "num_attention_heads", "n_head")
        layers = _size(config, "num_hidden_layers", "n_layer")
        family = str(config.get("model_type", ""))
        experts = _optional(config, "num_experts", "num_local_experts", "n_routed_experts") or 0
        intermediate = _optional(config, "intermediate_size", "n_inner") or 4 * hidden
        return cls(
            hidden=hidden,
            intermediate=intermediate,
            layers=layers,
            heads=heads,
            kv_heads=_optional(config, "num_key_value_heads") or heads,
            head_dim=_optional(config, "head_dim") or hidden // heads,
            vocabulary=_size(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", True)),
            longest=None if _scales_positions(config) else _optional(config, "max_position_embeddings", "n_positions"),
            experts=experts,
            expert_intermediate=(_optional(config, "moe_intermediate_size") or intermediate) if experts else 0,
            shared_intermediate=(_optional(config, "shared_expert_intermediate_size") or 0) if experts else 0,
            qkv_bias=bool(config.get("attention_bias", family in QKV_BIAS_FAMILIES)),
            qk_norm=family in QK_NORM_FAMILIES,
        )

    @classmethod
    def of_directory(cls, directory: Path) -> ModelShape:
        """From ``directory``/config.json. Raises ``ValueError`` with the path if it is missing or not a model's."""
        file = directory / "config.json"
        try:
            if file.stat().st_size > MAX_CONFIG_BYTES:
                raise ValueError(f"{file} has more than {MAX_CONFIG_BYTES} bytes, so it is not a model's config.json")
            config = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(config, Mapping):
            raise ValueError(f"{file} must hold a JSON object, not {type(config).__name__}")
        try:
            return cls.of_config(config)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding; as many again in the output embedding if the two are not tied."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * queries + 2 * keys)
        attention += (queries + 2 * keys) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        if self.experts:
            per_expert = 3 * self.hidden * self.expert_intermediate
            mlp = self.experts * (per_expert + self.hidden) + 3 * self.hidden * self.shared_intermediate
        else:
            mlp = 3 * self.hidden * self.intermediate
        return attention + mlp + 2 * self.hidden

    @property
    def outside_layers(self) -> int:
        """Parameters of the embeddings and the final norm."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        return self.layers * self.layer + self.outside_layers


def _scales_positions(config: Mapping[str, Any]) -> bool:
    """Whether the model takes longer sequences than it states."""
    parameters = config.get("rope_parameters")
    return bool(config.get("rope_scaling")) or (isinstance(parameters, Mapping) and "factor" in parameters)


def _optional(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of ``keys`` that is set. Raises ``ValueError`` for a value that is not a positive integer."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**40:
            raise ValueError(f"{key} is {value!r}, which is not a positive integer")
        return value
    return None


def _size(config: Mapping[str, Any], *keys: str) -> int:
    value = _optional(config, *keys)
    if value is None:
        raise ValueError(f"{keys[0]} is missing, so the model's size is unknown")
    return value
