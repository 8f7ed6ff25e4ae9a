"""Copies of the model in hybrid sharding."""

from __future__ import annotations

import pytest

from areal_api.actor import PPOActorConfig, TrainEngineConfig
from areal_api.sizing.gpus import GPUS
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.replicas import model_replicas
from benchmarks.memory import qwen25

H100 = GPUS["H100-80GB"].bytes


def replicas(model: str, *, nodes: int = 2, gpu_bytes: int | None = H100, **fsdp: object) -> int:
    config = TrainEngineConfig.model_validate({"path": "m", "fsdp": fsdp})
    parameters = ModelShape.of_config(qwen25(model)).parameters
    return model_replicas(config, parameters=parameters, nodes=nodes, ranks=8 * nodes, gpu_bytes=gpu_bytes)


def test_by_default_small_models_are_sharded_within_a_node_and_large_ones_over_all() -> None:
    assert replicas("Qwen2.5-1.5B") == 2
    assert replicas("Qwen2.5-7B") == 2  # 15 GB of state per GPU
    assert replicas("Qwen2.5-7B", nodes=4) == 4
    assert replicas("Qwen2.5-32B") == 1  # 65 GB
    assert replicas("Qwen2.5-7B", nodes=1) == 1
    assert replicas("Qwen2.5-7B", gpu_bytes=None) == 1


def test_a_copy_per_node_has_all_experts() -> None:
    for expert, copies in ((8, 2), (16, 1)):
        config = PPOActorConfig.model_validate({"path": "m", "parallel": {"expert": expert}})
        assert model_replicas(config, parameters=10**9, nodes=2, ranks=16, gpu_bytes=H100) == copies


def test_the_key_takes_precedence_and_must_divide_the_ranks() -> None:
    assert replicas("Qwen2.5-32B", replicas=4) == 4
    assert replicas("Qwen2.5-1.5B", replicas=1) == 1
    with pytest.raises(ValueError, match=r"fsdp\.replicas is 3, which does not divide the 16 ranks"):
        replicas("Qwen2.5-7B", replicas=3)
