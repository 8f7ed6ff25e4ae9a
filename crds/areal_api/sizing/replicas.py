"""Hybrid sharding: how many copies of the sharded model the trainer keeps."""

from __future__ import annotations

from areal_api.actor import PPOActorConfig, TrainEngineConfig
from areal_api.experiment import ExperimentSpec
from areal_api.sizing.gpus import Gpu
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.server_memory import BYTES_OF_DTYPE

STATE_BYTES = 16  # per parameter: float32 weight, gradient and Adam's two moments
HYBRID_FRACTION = 0.25  # of a GPU that the state of a model sharded within one node may take


def model_replicas(
    config: TrainEngineConfig,
    *,
    parameters: int,
    nodes: int,
    ranks: int,
    gpu_bytes: int | None,
    section: str = "actor",
    tensor: int = 1,
) -> int:
    """Copies of a model of ``parameters`` over ``ranks``: ``fsdp.replicas``, or the default if that is null.

    The default is one copy per node if its state fits easily, and otherwise, or without ``gpu_bytes``, one copy.
    Within a node, layers are gathered over NVLink; between nodes only gradients are reduced. ``tensor`` ranks divide
    the layers of a copy. Raises ``ValueError`` if the copies do not divide the ranks.
    """
    if config.fsdp.replicas is not None:
        problem = config.replicas_problem(ranks, tensor=tensor, section=section)
        if problem is not None:
            raise ValueError(problem)
        return config.fsdp.replicas
    expert = config.parallel.expert if isinstance(config, PPOActorConfig) else 1
    if (ranks // nodes) % expert:
        return 1
    if nodes == 1 or ranks % nodes or (ranks // tensor) % nodes or gpu_bytes is None or config.fsdp.offload_params:
        return 1
    frozen = isinstance(config, PPOActorConfig) and config.lora is not None
    state_bytes = BYTES_OF_DTYPE[config.dtype] if frozen else STATE_BYTES  # adapters are small
    return nodes if state_bytes * parameters / (ranks // nodes) <= HYBRID_FRACTION * gpu_bytes else 1


def with_replicas(spec: ExperimentSpec, model: ModelShape, gpu: Gpu | None) -> PPOActorConfig:
    """The actor's configuration with the number of copies of the model that the trainer chooses."""
    actor, trainer = spec.config.actor, spec.trainer
    gpu_bytes = None if gpu is None else gpu.bytes
    replicas = model_replicas(
        actor,
        parameters=model.parameters,
        nodes=trainer.nodes,
        ranks=trainer.ranks,
        gpu_bytes=gpu_bytes,
        tensor=actor.parallel.tensor,
    )
    return actor.model_copy(update={"fsdp": actor.fsdp.model_copy(update={"replicas": replicas})})
