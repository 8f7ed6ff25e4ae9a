"""Peak memory of one trainer GPU, by part.

The formulas follow the training step: FSDP2 shards float32 master weights, gradients and Adam's moments over N ranks,
gathers one layer at a time in the computation type, and holds one microbatch of T tokens. With LoRA the weights are
frozen in the computation type, and only adapters have master weights, gradients and moments. The coefficients were
fitted to simulated steps of Qwen2.5 models (fake CUDA tensors, FSDP2's memory tracker); tests/unit/api/sizing holds the
simulated peaks and the allowed deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from areal_api.actor import PPOActorConfig, TrainEngineConfig
from areal_api.sizing.adapters import adapter_parameters, largest_matrix
from areal_api.sizing.families import Family
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.server_memory import BYTES_OF_DTYPE

MASTER_BYTES = 4  # float32 weights and gradients
LOGITS_CHUNK_BYTES = 256 * 2**20  # algo.logprobs.DEFAULT_CHUNK_BYTES
BROADCAST_BUCKET_BYTES = 512 * 2**20


@dataclass(frozen=True)
class TrainerMemory:
    """Bytes of tensors on one GPU at the peak of a step."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int  # parameters and gradients that FSDP holds whole for a moment
    activations: int
    logits: int
    reference: int
    broadcast: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.by_part().values())

    def by_part(self) -> dict[str, int]:
        """Bytes by the name of the part."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def trainer_memory(
    shape: ModelShape, config: PPOActorConfig, *, ranks: int, tokens: int, ref: TrainEngineConfig | None = None
) -> TrainerMemory:
    """Memory of each of ``ranks`` GPUs for microbatches of at most ``tokens`` tokens.

    Ranks of ``config.parallel`` divide layers, tokens and predictions; embeddings are sharded, but not divided.
    ``ref``: the settings of the reference model if they are not the actor's; it counts as large as the actor.
    A step has four peaks: the backward pass through the logits, through a layer, the reduction of the embeddings'
    gradients, and the broadcast of new weights. The largest one is returned.
    """
    size = BYTES_OF_DTYPE[config.dtype]
    parallel = config.parallel
    shape, ranks = shape.divided(parallel.tensor), ranks // parallel.tensor
    tokens = -(-tokens // parallel.context)
    shards = max(1, ranks // (config.fsdp.replicas or 1))
    frozen, trained = (0, shape.parameters)
    if config.lora is not None:
        frozen, trained = shape.parameters, shape.layers * adapter_parameters(shape, config.lora)
    on_gpu = 0 if config.fsdp.offload_params else 1
    frozen_share, share = (on_gpu * -(-count // shards) for count in (frozen, trained))
    moments_bytes = 0 if config.optimizer.offload else config.optimizer.state_bytes
    moments = (
        _logits_peak(shape, config, size, tokens),
        _layer_peak(shape, config, size, tokens),
        _reduction_peak(shape, config, size, shards),
        _broadcast_peak(shape, config, size),
    )
    return TrainerMemory(
        parameters=share * MASTER_BYTES + frozen_share * size,
        gradients=share * MASTER_BYTES,
        optimizer=share * moments_bytes,
        **max(moments, key=lambda moment: sum(moment.values())),
        reference=_reference_bytes(shape, ref or config, shards=shards, ranks=ranks) if config.kl_ctl > 0 else 0,
    )


def _reference_bytes(shape: ModelShape, config: TrainEngineConfig, *, shards: int, ranks: int) -> int:
    """Float32 weights of the reference model on one GPU. ``shards``: of the actor, the default for both."""
    if config.fsdp.offload_params:
        return 0
    if config.fsdp.replicas is not None:
        shards = max(1, ranks // config.fsdp.replicas)
    return -(-shape.parameters // shards) * MASTER_BYTES


def _logits_peak(shape: ModelShape, config: PPOActorConfig, size: int, tokens: int) -> dict[str, int]:
    """All layers are done forward; what the output embedding needs follows, see ``_output_bytes``."""
    layers = 1 if config.fsdp.reshard_after_forward else shape.layers
    norm = (norm_bytes(shape.family, size) + size) * shape.hidden
    return {
        "gathered": size * (shape.outside_layers + layers * shape.layer),
        "activations": tokens * (kept_bytes_per_token(shape, config, size=size) + norm),
        "logits": _output_bytes(shape, size, -(-tokens // config.parallel.tensor), frozen=config.lora is not None),
        "broadcast": 0,
    }


def _output_bytes(shape: ModelShape, size: int, tokens: int, *, frozen: bool) -> int:
    """Chunks of logits, and the gradient of an embedding that is not frozen, summed in float32 (algo/logprobs.py).

    A chunk's logits and probabilities are computed while those of the last chunk still exist: four float32 tensors in
    the forward pass, and three and a half beside the sum in the backward pass, after which the sum is converted.
    """
    token = MASTER_BYTES * shape.vocabulary
    summed, converted = (0, 0) if frozen else (MASTER_BYTES * shape.embedding, size * shape.embedding)
    if token * tokens <= LOGITS_CHUNK_BYTES:  # one chunk, whose probabilities are kept
        return max(5 * token * tokens // 2 + summed, 3 * token * tokens // 2 + summed + converted)
    chunk = max(1, LOGITS_CHUNK_BYTES // token) * token
    return max(4 * chunk, 7 * chunk // 2 + summed, 3 * chunk // 2 + summed + converted)


def _layer_peak(shape: ModelShape, config: PPOActorConfig, size: int, tokens: int) -> dict[str, int]:
    """One layer goes backward while the next is gathered and the last one's gradient is reduced in float32."""
    layers = 2 if config.fsdp.reshard_after_forward else shape.layers
    gradients = size * (_mlp_elements(shape, tensors=shape.family.mlp_gradients) + shape.hidden)
    recomputed = recomputed_bytes_per_token(shape, config, size=size)
    kept = kept_bytes_per_token(shape, config, size=size)
    trained = shape.layer if config.lora is None else adapter_parameters(shape, config.lora)
    return {
        "gathered": size * (shape.outside_layers + layers * shape.layer) + MASTER_BYTES * trained,
        "activations": tokens * (kept + recomputed + gradients),
        "logits": size * shape.embedding if config.lora is None else 0,
        "broadcast": 0,
    }


def _reduction_peak(shape: ModelShape, config: PPOActorConfig, size: int, shards: int) -> dict[str, int]:
    """The end of the backward pass, for models whose embeddings outweigh the activations.

    The gradients of the embeddings are copied to float32 and then reduced to a shard, while one of them still exists.
    """
    outside = shape.outside_layers if config.lora is None else 0
    copied = (size + MASTER_BYTES) * outside
    reduced = MASTER_BYTES * (outside + outside // shards) + size * min(outside, shape.embedding)
    return {"gathered": max(copied, reduced), "activations": 0, "logits": 0, "broadcast": 0}


def _broadcast_peak(shape: ModelShape, config: PPOActorConfig, size: int) -> dict[str, int]:
    """One tensor is gathered at a time, the embedding being the largest, while a bucket is sent.

    A matrix with adapters is merged in float32.
    """
    bucket = BROADCAST_BUCKET_BYTES if config.weight_update_mode == "distributed" else 0
    merged = 0 if config.lora is None else (size + 2 * MASTER_BYTES) * largest_matrix(shape)
    return {"gathered": max(size * shape.embedding, merged), "activations": 0, "logits": 0, "broadcast": bucket}


def kept_bytes_per_token(shape: ModelShape, config: PPOActorConfig, *, size: int) -> int:
    """What all layers keep of a token after the forward pass: those with checkpointing only their inputs, if at all."""
    if not config.recomputes_activations("cuda"):
        return shape.layers * layer_bytes_per_token(shape, size=size)
    checkpointed = -(-shape.layers // config.checkpoint_every)
    inputs = 0 if config.offload_activations else checkpointed * size * shape.hidden
    return inputs + (shape.layers - checkpointed) * layer_bytes_per_token(shape, size=size)


def recomputed_bytes_per_token(shape: ModelShape, config: PPOActorConfig, *, size: int) -> int:
    """What the last layer computes again of a token. If it is not checkpointed, others are freed before one that is."""
    if not config.recomputes_activations("cuda") or (shape.layers - 1) % config.checkpoint_every:
        return 0
    loaded = size * shape.hidden if config.offload_activations else 0
    return loaded + layer_bytes_per_token(shape, size=size)


def layer_bytes_per_token(shape: ModelShape, *, size: int) -> int:
    """What one layer keeps of a token for its backward pass.

    What its norms keep; the inputs of attention and MLP; attention's queries, keys, values and two forms of its output;
    and the MLP's tensors.
    """
    family = shape.family
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    kept = (family.norms * norm_bytes(family, size) + 2 * size) * shape.hidden
    kept += norm_bytes(family, size) * (queries + keys) * (family.head_norms or family.row_norms)
    return kept + size * (3 * queries + 2 * keys + _mlp_elements(shape, tensors=family.mlp_tensors))


def norm_bytes(family: Family, size: int) -> int:
    """What a norm keeps of an element: an RMSNorm its input in float32 and, if it has a weight, the normalised form."""
    if family.layer_norm:
        return size
    if family.norm_weights == 0:
        return MASTER_BYTES
    return MASTER_BYTES + (MASTER_BYTES if family.float32_norm else size)


def _mlp_elements(shape: ModelShape, *, tensors: int) -> int:
    """Elements of ``tensors`` as wide as the MLP for a token; a mixture has them, and one as wide as the hidden states,
    for each expert that the token is sent to."""
    if not shape.experts:
        return tensors * shape.intermediate
    of_expert = tensors * shape.expert_intermediate + shape.hidden
    return shape.experts_per_token * of_expert + tensors * shape.shared_intermediate
