"""Weights and KV cache of a server, by hand for Qwen2.5-7B on one H100."""

from __future__ import annotations

import pytest

from areal_api.config import SGLangConfig
from areal_api.sizing.gpus import GPUS
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.server_memory import GIB, kv_bytes_per_token, server_memory
from benchmarks.memory import qwen25

H100 = GPUS["H100-80GB"]
SHAPE = ModelShape.of_config(qwen25("Qwen2.5-7B"))


def test_a_token_takes_two_vectors_per_layer_and_head() -> None:
    # 2 (keys, values) × 28 layers × 4 heads × 128 × 2 bytes
    assert kv_bytes_per_token(SHAPE, size=2, tensor_parallel=1) == 57_344
    assert kv_bytes_per_token(SHAPE, size=2, tensor_parallel=2) == 28_672


def test_heads_are_replicated_where_there_are_fewer_than_gpus() -> None:
    assert kv_bytes_per_token(SHAPE, size=2, tensor_parallel=8) == kv_bytes_per_token(SHAPE, size=2, tensor_parallel=4)


def test_the_fraction_covers_weights_and_cache() -> None:
    config = SGLangConfig(mem_fraction_static=0.8)
    memory = server_memory(SHAPE, config, gpu=H100, tensor_parallel=1, longest=4096)
    expected = 0.8 * H100.bytes - 2 * 7_615_616_512
    assert memory.kv_tokens == pytest.approx(expected / 57_344, abs=2)
    assert memory.sequences == memory.kv_tokens // 4096


def test_a_null_fraction_leaves_sglangs_own_reserve() -> None:
    config = SGLangConfig(mem_fraction_static=None)
    memory = server_memory(SHAPE, config, gpu=H100, tensor_parallel=1, longest=4096)
    assert memory.reserve_bytes >= 10 * GIB


def test_a_model_larger_than_the_gpu_leaves_no_token() -> None:
    large = ModelShape.of_config(qwen25("Qwen2.5-32B"))
    memory = server_memory(large, SGLangConfig(), gpu=GPUS["A10-24GB"], tensor_parallel=1, longest=10)
    assert (memory.kv_tokens, memory.sequences) == (0, 0)


def test_max_total_tokens_bounds_the_cache() -> None:
    config = SGLangConfig(max_total_tokens=1000)
    assert server_memory(SHAPE, config, gpu=H100, tensor_parallel=1, longest=100).kv_tokens == 1000
