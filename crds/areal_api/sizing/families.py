"""Model families whose sizes are known: how each differs from Llama in what its config.json does not say.

The trainer loads a model with transformers, whose classes these traits describe. tests/unit/api/sizing compares
parameters with transformers, and `python -m benchmarks memory` activations with simulated steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """Traits of a decoder layer and of what surrounds the layers. The defaults are Llama's."""

    tied: bool = False  # whether embeddings are tied if config.json does not say
    heads: int | None = None  # if config.json does not say; None: it has to
    vocabulary: int | None = None  # likewise
    kv_heads: int | None = None  # if config.json does not say; None: one per attention head
    head_dim: int | None = None  # if config.json does not say; None: the hidden size over the attention heads
    norms: int = 2  # of the hidden state, per layer
    norm_weights: int = 1  # tensors of a norm's parameters: none, a weight, or a weight and a bias
    layer_norm: bool = False  # LayerNorm, which keeps its input for the backward pass, rather than RMSNorm
    float32_norm: bool = False  # an RMSNorm that multiplies by its weight in float32
    head_norms: bool = False  # norms of queries and keys, per head
    row_norms: bool = False  # norms of queries and keys over all heads
    qkv_bias: bool = False
    biases: bool = False  # of every linear layer
    mlp_matrices: int = 3  # gate, up and down, or up and down
    mlp_tensors: int = 4  # of the MLP's width that are kept for the backward pass
    mlp_gradients: int = 2  # of that width that the backward pass adds, less what it has freed by then
    positions: bool = False  # learned embeddings of positions
    wide_mlp: bool = False  # whether the MLP has four times the hidden size if config.json does not say
    multi_query: bool = False  # whether there is one key-value head if config.json does not say


LLAMA = Family()
_GEMMA = Family(tied=True, kv_heads=16, head_dim=256, float32_norm=True)
_GEMMA3 = replace(_GEMMA, heads=8, kv_heads=4, vocabulary=262_208, norms=4, head_norms=True)
_GLM = Family(kv_heads=2, head_dim=128, qkv_bias=True)
_MISTRAL = Family(kv_heads=8)
_OLMO2 = Family(float32_norm=True, row_norms=True)
_NEOX = Family(
    norm_weights=2, layer_norm=True, qkv_bias=True, biases=True, mlp_matrices=2, mlp_tensors=2, mlp_gradients=1
)
_GPT2 = replace(_NEOX, tied=True, positions=True, wide_mlp=True, mlp_tensors=5, mlp_gradients=2)

FAMILIES = {
    "apertus": Family(head_norms=True, mlp_matrices=2, mlp_tensors=6),
    "arcee": Family(mlp_matrices=2, mlp_tensors=2),
    "ernie4_5": Family(tied=True, kv_heads=2, head_dim=128),
    "exaone4": Family(kv_heads=32, head_norms=True),
    "gemma": _GEMMA,
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "glm": _GLM,
    "glm4": replace(_GLM, norms=4),
    "gpt2": _GPT2,
    "gpt-sw3": _GPT2,
    "gpt_bigcode": replace(_GPT2, multi_query=True, mlp_tensors=2, mlp_gradients=1),
    "gpt_neox": _NEOX,
    "granite": LLAMA,
    "helium": Family(kv_heads=20, head_dim=128, float32_norm=True),
    "hunyuan_v1_dense": Family(head_norms=True),
    "hyperclovax": LLAMA,
    "jais2": replace(_NEOX, mlp_gradients=2),
    "llama": LLAMA,
    "ministral": _MISTRAL,
    "ministral3": replace(_MISTRAL, head_dim=128),
    "mistral": _MISTRAL,
    "mixtral": _MISTRAL,
    "olmo": Family(norm_weights=0),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "opt": replace(_GPT2, wide_mlp=False, mlp_tensors=1),
    "persimmon": replace(_NEOX, head_norms=True, mlp_gradients=2),
    "phi3": LLAMA,
    "qwen2": Family(kv_heads=32, qkv_bias=True),
    "qwen2_moe": Family(kv_heads=16, qkv_bias=True),
    "qwen3": Family(kv_heads=32, head_dim=128, head_norms=True),
    "qwen3_moe": Family(kv_heads=4, head_norms=True),
    "seed_oss": Family(kv_heads=8, head_dim=128, qkv_bias=True),
    "smollm3": Family(tied=True, kv_heads=4),
    "starcoder2": replace(_NEOX, tied=True, kv_heads=2),
}
