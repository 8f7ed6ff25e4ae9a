"""Memory of one SGLang server: weights, and the tokens that its KV cache holds."""

from __future__ import annotations

from dataclasses import dataclass

from areal_api.config import SGLangConfig
from areal_api.sizing.gpus import Gpu
from areal_api.sizing.model_shape import ModelShape

MIB = 2**20
GIB = 2**30
BYTES_OF_DTYPE = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}
# SGLang's own reserve if mem_fraction_static is null (sglang 0.5.23, arg_groups/memory_hook.py): metadata, activations
# of a prefill chunk, CUDA graphs; at least 10 GiB on GPUs with more than 60 GiB.
PREFILL_TOKENS_SMALL, PREFILL_TOKENS_LARGE = 2048, 8192
LARGE_GPU_BYTES, LARGE_GPU_RESERVE_BYTES = 60 * 1024 * MIB, 10 * 1024 * MIB


@dataclass(frozen=True)
class ServerMemory:
    """Bytes on each GPU of a server, and what its KV cache holds over all of its GPUs."""

    weights_bytes: int
    reserve_bytes: int
    kv_cache_bytes: int  # 0 or less: the weights leave no room
    kv_tokens: int
    sequences: int  # of the longest configured length that fit into the cache together


def server_memory(
    shape: ModelShape, config: SGLangConfig, *, gpu: Gpu, tensor_parallel: int, longest: int
) -> ServerMemory:
    """How a server of ``tensor_parallel`` GPUs divides their memory, for sequences of ``longest`` tokens."""
    size = BYTES_OF_DTYPE[config.dtype]
    weights = shape.parameters * size // tensor_parallel
    # With a null fraction SGLang keeps its own reserve; otherwise the fraction covers weights and cache.
    if config.mem_fraction_static is None:
        reserve = sglang_reserve_bytes(gpu, tensor_parallel=tensor_parallel)
    else:
        reserve = int(gpu.bytes * (1 - config.mem_fraction_static))
    cache = gpu.bytes - reserve - weights
    tokens = max(0, cache) // kv_bytes_per_token(shape, size=size, tensor_parallel=tensor_parallel)
    if config.max_total_tokens is not None:
        tokens = min(tokens, config.max_total_tokens)
    return ServerMemory(weights, reserve, cache, tokens, tokens // max(1, longest))


def kv_bytes_per_token(shape: ModelShape, *, size: int, tensor_parallel: int) -> int:
    """Keys and values of one token on one GPU; a head is on at least one GPU, so small ``kv_heads`` are replicated."""
    heads = max(1, shape.kv_heads // tensor_parallel)
    return 2 * shape.layers * heads * shape.head_dim * size


def sglang_reserve_bytes(gpu: Gpu, *, tensor_parallel: int) -> int:
    """What SGLang leaves free on a GPU by default."""
    large = gpu.bytes > LARGE_GPU_BYTES
    prefill = PREFILL_TOKENS_LARGE if large else PREFILL_TOKENS_SMALL
    reserve = int((512 + 1.5 * prefill + tensor_parallel / 8 * 1024) * MIB)
    return max(reserve, LARGE_GPU_RESERVE_BYTES) if large else reserve
