"""Checks of settings that SGLang would refuse only after it has started, from a local model's config.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.combinations import tensor_parallel_sizes
from areal_api.sizing.lengths import LONGER_CONTEXT
from areal_launcher.bounded_files import read_object


def check_servers(spec: ExperimentSpec, *, cores: int) -> None:
    """Raise ``ValueError`` for settings of the servers that do not fit the model or the machine."""
    config = spec.config
    tensor_parallel = spec.servers.tensor_parallel
    if spec.servers.device == "cpu" and tensor_parallel > cores:
        raise ValueError(
            f"servers.tensorParallel: {tensor_parallel} on cpu needs as many cores, this process has {cores}; "
            f"set it to at most {cores}"
        )
    model = read_object(Path(config.sglang.model_path or config.actor.path) / "config.json") or {}
    check_heads(model, tensor_parallel)
    longest = positions(model)
    context = config.sglang.context_length
    variables = {LONGER_CONTEXT for entry in spec.servers.env if entry.get("name") == LONGER_CONTEXT} | set(os.environ)
    overridden = LONGER_CONTEXT in variables
    if context is not None and longest is not None and context > longest and not overridden:
        raise ValueError(
            f"sglang.context_length: {context} is longer than the model's {longest} positions; set it to at most "
            f"{longest}, or the variable {LONGER_CONTEXT}=1 in servers.env"
        )
    if longest is not None and config.gconfig.max_new_tokens >= longest and not overridden:
        raise ValueError(
            f"gconfig.max_new_tokens: {config.gconfig.max_new_tokens} leaves no room for a prompt in the model's "
            f"{longest} positions; lower it"
        )


def check_heads(model: dict[str, Any], tensor_parallel: int) -> None:
    """SGLang divides attention heads over ranks, and divides or replicates key-value heads."""
    heads = model.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1:
        return
    kv_heads = model.get("num_key_value_heads")
    kv_heads = kv_heads if isinstance(kv_heads, int) and kv_heads > 0 else heads
    sizes = tensor_parallel_sizes(heads, kv_heads)
    if tensor_parallel not in sizes:
        raise ValueError(
            f"servers.tensorParallel: {tensor_parallel} does not divide the model's {heads} attention heads and "
            f"{kv_heads} key-value heads; set it to one of {', '.join(map(str, sizes))}"
        )


def positions(model: dict[str, Any]) -> int | None:
    """The longest sequence of a model; None if it scales its positions, or does not state it."""
    longest = model.get("max_position_embeddings")
    scaled = model.get("rope_scaling") or ("factor" in (model.get("rope_parameters") or {}))
    return longest if isinstance(longest, int) and longest > 0 and not scaled else None
