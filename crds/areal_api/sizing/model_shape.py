"""The sizes of a decoder-only transformer, read from its config.json. No weights are needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from areal_api.sizing.families import FAMILIES, LLAMA, Family
from areal_api.sizing.trained_types import is_causal_lm, logit_changes, trained_types

MAX_CONFIG_BYTES = 4 * 2**20
# Largest sizes that are taken for a model's; the largest published ones are below a tenth of them.
MAX_WIDTH, MAX_LAYERS, MAX_HEADS, MAX_VOCABULARY = 2**20, 4096, 4096, 2**24
MAX_POSITIONS, MAX_EXPERTS = 2**40, 2**16
MAX_SHOWN = 60


class MissingSizeError(ValueError):
    """A config.json without a size, or with one under a name that is not known here. ``kind``: the model's type."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


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
    kind: str = "llama"  # the model's type in transformers
    logit_changes: tuple[str, ...] = ()  # keys with which it transforms its logits
    longest_packed: int | None = None  # beyond it, rotary embeddings depend on the longest sequence of a pass
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    family: Family = LLAMA
    positions: int = 0  # rows of a learned embedding of positions
    vision: int = 0  # parameters of an image encoder, which the trainer loads and shards with the rest

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the content of a config.json. Raises ``ValueError`` that names the missing or wrong key, and
        ``MissingSizeError`` for a type of model whose sizes are not known here."""
        kind = _kind(config)
        text = config.get("text_config")
        if isinstance(text, Mapping):
            config = {**config, **text}
        try:
            return cls._of_text(config, kind)
        except MissingSizeError as error:
            raise MissingSizeError(str(error), kind) from None

    @classmethod
    def _of_text(cls, config: Mapping[str, Any], kind: str) -> ModelShape:
        family = family_of(config, kind)
        hidden = _size(config, "hidden_size", "n_embd", most=MAX_WIDTH)
        heads = _size(config, "num_attention_heads", "n_head", most=MAX_HEADS, default=family.heads)
        layers = _size(config, "num_hidden_layers", "n_layer", most=MAX_LAYERS)
        experts = _optional(config, "num_experts", "num_local_experts", "n_routed_experts", most=MAX_EXPERTS) or 0
        intermediate = _intermediate(config, family, hidden)
        longest = _optional(config, "max_position_embeddings", "n_positions", most=MAX_POSITIONS)
        return cls(
            hidden=hidden,
            intermediate=intermediate,
            layers=layers,
            heads=heads,
            kv_heads=_kv_heads(config, family, heads),
            head_dim=_head_dim(config, family, hidden, heads),
            vocabulary=_size(config, "vocab_size", most=MAX_VOCABULARY, default=family.vocabulary),
            tied=_flag(config, "tie_word_embeddings", default=family.tied),
            longest=None if _scales_positions(config) else longest,
            kind=kind,
            logit_changes=logit_changes(kind, config),
            longest_packed=_longest_packed(config, longest),
            experts=experts,
            experts_per_token=_optional(config, "num_experts_per_tok", "moe_topk", most=MAX_EXPERTS) or min(experts, 2),
            expert_intermediate=_optional(config, "moe_intermediate_size", most=MAX_WIDTH) or intermediate,
            shared_intermediate=_optional(config, "shared_expert_intermediate_size", most=MAX_WIDTH) or 0,
            family=family,
            positions=min(longest or 0, MAX_VOCABULARY) if family.positions else 0,
            vision=_vision_parameters(config.get("vision_config")),
        )

    @classmethod
    def of_directory(cls, directory: Path) -> ModelShape:
        """From ``directory``/config.json. Raises ``ValueError`` with the path if it is missing or not a model's, and
        ``MissingSizeError`` if it lacks a size."""
        file = directory / "config.json"
        try:
            if file.exists() and not file.is_file():
                raise ValueError(f"{file} is not a regular file")
            with file.open("rb") as opened:
                content = opened.read(MAX_CONFIG_BYTES + 1)
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        if len(content) > MAX_CONFIG_BYTES:
            raise ValueError(f"{file} has more than {MAX_CONFIG_BYTES} bytes, so it is not a model's config.json")
        try:
            config = json.loads(content.decode())
        except (ValueError, RecursionError) as error:  # also integers of too many digits
            raise ValueError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(config, Mapping):
            raise ValueError(f"{file} must hold a JSON object, not {type(config).__name__}")
        try:
            return cls.of_config(config)
        except ValueError as error:
            if isinstance(error, MissingSizeError):
                raise MissingSizeError(f"{file}: {error}", error.kind) from error
            raise ValueError(f"{file}: {error}") from error

    def divided(self, tensor: int) -> ModelShape:
        """What each of ``tensor`` ranks holds that divide the layers: fewer heads, a narrower MLP, whole experts."""
        return replace(
            self,
            heads=self.heads // tensor,
            kv_heads=self.kv_heads // tensor,
            intermediate=self.intermediate if self.experts else self.intermediate // tensor,
        )

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding; as many again in the output embedding if the two are not tied."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        family = self.family
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * queries + 2 * keys)
        attention += (queries + 2 * keys) * family.qkv_bias + self.hidden * family.biases
        attention += 2 * self.head_dim * family.norm_weights * family.head_norms + (queries + keys) * family.row_norms
        if self.experts:
            per_expert = 3 * self.hidden * self.expert_intermediate
            mlp = self.experts * (per_expert + self.hidden) + 3 * self.hidden * self.shared_intermediate
        else:
            mlp = family.mlp_matrices * self.hidden * self.intermediate
            mlp += (self.intermediate + self.hidden) * family.biases
        return attention + mlp + family.norms * family.norm_weights * self.hidden

    @property
    def outside_layers(self) -> int:
        """Parameters of embeddings, final norm and image encoder."""
        embeddings = self.embedding * (1 if self.tied else 2) + self.positions * self.hidden
        return embeddings + self.family.norm_weights * self.hidden + self.vision

    @property
    def parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        return self.layers * self.layer + self.outside_layers


def family_of(config: Mapping[str, Any], kind: str) -> Family:
    """The traits of a model's family, with what its config.json says about them."""
    family = FAMILIES.get(str(config.get("model_type", ""))) or FAMILIES.get(kind)
    if family is None:
        raise MissingSizeError(f"model_type is {shown(kind)}, a type of model whose sizes are not known here")
    changes: dict[str, Any] = {"qkv_bias": _flag(config, "attention_bias", default=family.qkv_bias)}
    if _flag(config, "use_post_norm", default=False):
        changes["norms"] = 4
    return replace(family, **changes)


def _kind(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if kind is None:
        raise MissingSizeError("model_type is missing, so transformers cannot load the model")
    if not isinstance(kind, str):
        raise ValueError(f"model_type is {shown(kind)}, which is not a string")
    if not is_causal_lm(kind):
        version = trained_types()["transformers"]
        raise MissingSizeError(f"model_type is {shown(kind)}, no causal language model of transformers {version}")
    return kind


def _scales_positions(config: Mapping[str, Any]) -> bool:
    """Whether the model takes longer sequences than it states."""
    parameters = config.get("rope_parameters")
    return bool(config.get("rope_scaling")) or (isinstance(parameters, Mapping) and "factor" in parameters)


def _longest_packed(config: Mapping[str, Any], longest: int | None) -> int | None:
    """The trainer refuses longer sequences of models with dynamic or long RoPE; see ``LanguageModel``."""
    limits: list[int] = []
    for stated in (config.get("rope_scaling"), config.get("rope_parameters")):
        ropes = (stated, *stated.values()) if isinstance(stated, Mapping) else ()  # of all layers, or by type of layer
        for rope in ropes:
            if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope"):
                found = _optional({**config, **rope}, "original_max_position_embeddings", most=MAX_POSITIONS)
                limits += [size for size in (found or longest,) if size is not None]
    return min(limits, default=None)


def _intermediate(config: Mapping[str, Any], family: Family, hidden: int) -> int:
    """Width of the MLP; models like GPT-2 have four times the hidden size if they do not state it."""
    size = _optional(config, "intermediate_size", "n_inner", "ffn_dim", most=MAX_WIDTH)
    if size is None and not family.wide_mlp:
        raise MissingSizeError("intermediate_size is missing, so the model's size is unknown")
    return size or 4 * hidden


def _kv_heads(config: Mapping[str, Any], family: Family, heads: int) -> int:
    if _flag(config, "multi_query", default=family.multi_query):
        return 1
    unstated = heads if "num_key_value_heads" in config else family.kv_heads or heads
    kv_heads = _optional(config, "num_key_value_heads", most=MAX_HEADS) or unstated
    if heads % kv_heads:
        raise ValueError(f"num_key_value_heads is {kv_heads}, which does not divide num_attention_heads {heads}")
    return kv_heads


def _head_dim(config: Mapping[str, Any], family: Family, hidden: int, heads: int) -> int:
    size = _optional(config, "head_dim", most=MAX_WIDTH) or family.head_dim
    if size is None and hidden % heads:
        raise ValueError(
            f"num_attention_heads is {heads}, which does not divide hidden_size {hidden}, and head_dim is missing"
        )
    return size or hidden // heads


def _vision_parameters(config: Any) -> int:
    """Parameters of an image encoder of ordinary transformer layers, without its embeddings; 0 without one."""
    if not isinstance(config, Mapping):
        return 0
    hidden = _optional(config, "hidden_size", most=MAX_WIDTH)
    layers = _optional(config, "num_hidden_layers", most=MAX_LAYERS)
    if hidden is None or layers is None:
        return 0
    intermediate = _optional(config, "intermediate_size", most=MAX_WIDTH) or 4 * hidden
    return layers * (4 * hidden * hidden + 2 * hidden * intermediate)


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {shown(value)}, which is not true or false")
    return value


def _optional(config: Mapping[str, Any], *keys: str, most: int) -> int | None:
    """The first of ``keys`` that is set. Raises ``ValueError`` for a value that is no integer from 1 to ``most``."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{key} is {shown(value)}, which is not a positive integer")
        if value > most:
            raise ValueError(f"{key} is {shown(value)}, which no model has; at most {most} is accepted")
        return value
    return None


def _size(config: Mapping[str, Any], *keys: str, most: int, default: int | None = None) -> int:
    value = _optional(config, *keys, most=most) or default
    if value is None:
        raise MissingSizeError(f"{keys[0]} is missing, so the model's size is unknown")
    return value


def shown(value: object) -> str:
    """A value of a stranger's file for a message, cut to a line."""
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'mapping'}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**64 else "an integer of more than 64 bits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
