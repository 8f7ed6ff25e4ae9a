"""The smallest change with which a trainer fits its GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from areal_api.actor import PPOActorConfig
from areal_api.experiment import ExperimentSpec
from areal_api.sizing.gpus import Gpu
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.trainer_memory import trainer_memory

MAX_RANKS_TRIED = 1024
TOKENS_ROUNDED_TO = 1024


def trainer_fix(spec: ExperimentSpec, shape: ModelShape, gpu: Gpu, *, tokens: int, longest: int) -> str:
    """The first change, from the cheapest to the costliest, with which the trainer fits.

    ``tokens``: of a microbatch now; ``longest``: of the longest sequence, below which a microbatch cannot go.
    """
    actor, trainer = spec.config.actor, spec.trainer

    def fits(config: PPOActorConfig, *, ranks: int = trainer.ranks, tokens: int = tokens) -> bool:
        memory = trainer_memory(shape, config, ranks=ranks, tokens=tokens, ref=spec.config.ref)
        return memory.total <= gpu.usable_bytes

    def smaller(config: PPOActorConfig, ranks: int) -> str:
        found = largest_that_fits(lambda n: fits(config, ranks=ranks, tokens=n), longest, tokens)
        return "" if found == tokens else f" config.actor.mb_spec.max_tokens_per_mb={found}"

    checkpointed = actor.model_copy(update={"gradient_checkpointing": True})
    parallel = actor.parallel
    prefix = "" if actor.recomputes_activations("cuda") else " config.actor.gradient_checkpointing=true"
    for key, value in sharding_changes(actor, trainer.ranks):
        if fits(with_fsdp(actor, key, value)):
            return f"set config.actor.fsdp.{key}={str(value).lower()}"
    if prefix and fits(checkpointed):
        return f"set{prefix}"
    if longest < tokens and fits(checkpointed, tokens=longest):
        return f"set{prefix}{smaller(checkpointed, trainer.ranks)}"
    for context in contexts(actor, shape, trainer.ranks):
        divided = checkpointed.model_copy(update={"parallel": parallel.model_copy(update={"context": context})})
        if fits(divided, tokens=longest):
            return f"set{prefix}{smaller(divided, trainer.ranks)} config.actor.parallel.context={context}"
    batch = spec.config.train_dataset.batch_size
    for shares in range(trainer.ranks // parallel.ranks + 1, min(batch, MAX_RANKS_TRIED) + 1):
        ranks = shares * parallel.ranks
        if batch % shares == 0 and fits(checkpointed, ranks=ranks, tokens=longest):
            changes = f"{prefix}{smaller(checkpointed, ranks)}"
            use = f"use {ranks} ranks (trainer.nodes × trainer.processesPerNode)"
            return f"set{changes} and {use}" if changes else use
    offloaded = with_fsdp(checkpointed, "offload_params", True)
    if fits(offloaded, tokens=longest):
        return (
            f"set{prefix}{smaller(offloaded, trainer.ranks)} config.actor.fsdp.offload_params=true, which keeps the "
            "optimizer in host memory"
        )
    return "shorten the sequences (gconfig.max_new_tokens) or take a smaller model or a larger GPU"


def sharding_changes(actor: PPOActorConfig, ranks: int) -> Iterator[tuple[str, int | bool]]:
    """Keys of actor.fsdp with values that take less memory: fewer copies of the model, no gathered layers kept."""
    copies = actor.fsdp.replicas or 1
    groups = ranks // actor.parallel.tensor
    yield from (("replicas", fewer) for fewer in range(copies - 1, 0, -1) if groups % fewer == 0)
    if not actor.fsdp.reshard_after_forward:
        yield "reshard_after_forward", True


def contexts(actor: PPOActorConfig, shape: ModelShape, ranks: int) -> Iterator[int]:
    """Larger values of actor.parallel.context that divide the ranks and the model's heads."""
    if actor.attn_impl not in (None, "sdpa", "varlen"):
        return
    tensor, context = actor.parallel.tensor, actor.parallel.context
    for larger in range(2 * context, ranks // tensor + 1, context):
        if ranks % (tensor * larger) == 0 and shape.heads % (tensor * larger) == 0:
            yield larger


def with_fsdp(actor: PPOActorConfig, key: str, value: int | bool) -> PPOActorConfig:
    """``actor`` with one key of its section fsdp changed."""
    return actor.model_copy(update={"fsdp": actor.fsdp.model_copy(update={key: value})})


def largest_that_fits(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest number up to ``most`` that fits, rounded down if it stays above ``least``, which fits."""
    if fits(most):
        return most
    low, high = least, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(least, low - low % TOKENS_ROUNDED_TO)
