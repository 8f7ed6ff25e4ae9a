"""Sizes of low-rank adapters (LoRA): A [rank, in] and B [out, rank] beside each chosen linear layer."""

from __future__ import annotations

from areal_api.actor import LoRAConfig
from areal_api.sizing.model_shape import ModelShape

ALL_LINEAR = "all-linear"


def adapter_parameters(shape: ModelShape, lora: LoRAConfig) -> int:
    """Parameters of the adapters of one decoder layer.

    The names are those of Llama and Qwen. A name that is not among them counts as the largest layer.
    """
    sizes = linear_layers(shape)
    chosen = sizes if ALL_LINEAR in lora.target_modules else dict.fromkeys(lora.target_modules)
    largest = max(sizes.values(), key=sum)
    return lora.rank * sum(sum(sizes.get(name, largest)) for name in chosen)


def largest_matrix(shape: ModelShape) -> int:
    """Parameters of the largest linear layer of a decoder layer."""
    return max(inputs * outputs for inputs, outputs in linear_layers(shape).values())


def linear_layers(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers of a decoder layer."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = {
        "q_proj": (shape.hidden, queries),
        "k_proj": (shape.hidden, keys),
        "v_proj": (shape.hidden, keys),
        "o_proj": (queries, shape.hidden),
    }
    mlp = {"up_proj": (shape.hidden, shape.intermediate), "down_proj": (shape.intermediate, shape.hidden)}
    gate = {"gate_proj": (shape.hidden, shape.intermediate)} if shape.family.mlp_matrices == 3 else {}
    return attention | mlp | gate
