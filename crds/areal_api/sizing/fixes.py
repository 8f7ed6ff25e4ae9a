"""The smallest change with which a trainer fits its GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from areal_api.actor import PPOActorConfig
from areal_api.experiment import ExperimentSpec
from areal_api.sizing.gpus import Gpu
from areal_api.sizing.lengths import longest_sequence, tokens_per_microbatch
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.replicas import model_replicas, with_replicas
from areal_api.sizing.trainer_memory import trainer_memory

MAX_RANKS_TRIED = 1024
TOKENS_ROUNDED_TO = 1024
CHECKPOINTING = "config.actor.gradient_checkpointing=true"
CHECKPOINT_ALL = "config.actor.checkpoint_every=1"
OFFLOAD = "config.actor.optimizer.offload"


@dataclass(frozen=True)
class Change:
    """A trainer that differs from the experiment's in ``keys``, which a user sets, and in what ``note`` says.

    ``actors`` has several elements if the ranks can be spread over nodes in ways that keep different numbers of copies
    of the model; all of them have to fit.
    """

    actors: tuple[PPOActorConfig, ...]
    ranks: int
    keys: tuple[str, ...] = ()
    note: str = ""
    fewer_tokens: bool = True  # whether microbatches may become smaller, too


def trainer_fix(spec: ExperimentSpec, shape: ModelShape, gpu: Gpu) -> str:
    """The first change, from the cheapest to the costliest, with which the trainer fits."""
    longest = longest_sequence(spec.config)  # a microbatch holds at least so much
    for change in changes(spec, shape, gpu):
        config = spec.config.model_copy(update={"actor": change.actors[0]})
        most = tokens_per_microbatch(config, ranks=change.ranks)

        def fits(tokens: int, change: Change = change) -> bool:
            found = (
                trainer_memory(shape, actor, ranks=change.ranks, tokens=tokens, ref=spec.config.ref)
                for actor in change.actors
            )
            return all(memory.total <= gpu.usable_bytes for memory in found)

        if fits(longest if change.fewer_tokens else most):
            tokens = largest_that_fits(fits, longest, most)
            smaller = () if tokens == most else (f"config.actor.mb_spec.max_tokens_per_mb={tokens}",)
            keys = " ".join((*smaller, *change.keys))
            return f"set {keys}{change.note}" if keys else change.note.removeprefix(" and ")
    return "shorten the sequences (gconfig.max_new_tokens) or take a smaller model or a larger GPU"


def changes(spec: ExperimentSpec, shape: ModelShape, gpu: Gpu) -> Iterator[Change]:
    """What can be changed, from the cheapest to the costliest."""
    ranks, actor = spec.trainer.ranks, with_replicas(spec, shape, gpu)
    for key, value in sharding_changes(actor, ranks):
        yield Change((with_fsdp(actor, **{key: value}),), ranks, (fsdp_key(key, value),), fewer_tokens=False)
    common = tuple(
        key
        for key, missing in (
            (CHECKPOINTING, not actor.recomputes_activations("cuda")),
            (CHECKPOINT_ALL, actor.checkpoint_every > 1),
        )
        if missing
    )
    actor = with_checkpointing(actor)
    if common:
        yield Change((actor,), ranks, common, fewer_tokens=False)
    # The least that sharding can take: one copy of the model, and no gathered layers kept.
    least = dict(sharding_changes(actor, ranks))
    least_keys = tuple(fsdp_key(key, value) for key, value in least.items())
    for context in (actor.parallel.context, *contexts(actor, shape, ranks)):
        divided = actor.model_copy(update={"parallel": actor.parallel.model_copy(update={"context": context})})
        keys = common if context == actor.parallel.context else (*common, f"config.actor.parallel.context={context}")
        yield Change((divided,), ranks, keys)
        if least:
            yield Change((with_fsdp(divided, **least),), ranks, (*keys, *least_keys))
    if not actor.offload_activations:
        waiting = actor.model_copy(update={"offload_activations": True})
        yield Change((waiting,), ranks, (*common, "config.actor.offload_activations=true"))
    yield from more_ranks(spec, shape, gpu, common)
    yield from offloading_changes(actor, ranks, common)


def offloading_changes(actor: PPOActorConfig, ranks: int, common: tuple[str, ...]) -> Iterator[Change]:
    """The optimizer's state in host memory, and then everything that is sharded."""
    if actor.optimizer.type == "adam" and not (actor.optimizer.offload or actor.fsdp.offload_params):
        moments = actor.model_copy(update={"optimizer": actor.optimizer.model_copy(update={"offload": True})})
        note = ", which keeps the optimizer's state in host memory"
        yield Change((moments,), ranks, (*common, f"{OFFLOAD}=true"), note)
    optimizer = actor.optimizer.model_copy(update={"offload": False})
    offloaded = with_fsdp(actor.model_copy(update={"optimizer": optimizer}), offload_params=True)
    keys = (fsdp_key("offload_params", True), *((f"{OFFLOAD}=false",) if actor.optimizer.offload else ()))
    yield Change((offloaded,), ranks, (*common, *keys), ", which keeps the whole optimizer in host memory")


def more_ranks(spec: ExperimentSpec, shape: ModelShape, gpu: Gpu, common: tuple[str, ...]) -> Iterator[Change]:
    """More ranks, which shards parameters further: with the copies of the model that any division into nodes keeps by
    default, or with one copy."""
    actor = with_checkpointing(spec.config.actor)
    parallel, batch = actor.parallel, spec.config.train_dataset.batch_size
    for shares in range(spec.trainer.ranks // parallel.ranks + 1, min(batch, MAX_RANKS_TRIED) + 1):
        if batch % shares:
            continue
        ranks = shares * parallel.ranks
        note = f" and use {ranks} ranks (trainer.nodes × trainer.processesPerNode)"
        if actor.replicas_problem(ranks, tensor=parallel.tensor) is None:
            copies = {
                model_replicas(
                    actor,
                    parameters=shape.parameters,
                    nodes=nodes,
                    ranks=ranks,
                    gpu_bytes=gpu.bytes,
                    tensor=parallel.tensor,
                )
                for nodes in range(1, ranks + 1)
                if ranks % nodes == 0
            }
            yield Change(tuple(with_fsdp(actor, replicas=number) for number in sorted(copies)), ranks, common, note)
        one, keys = with_fsdp(actor, replicas=1), (*common, fsdp_key("replicas", 1))
        yield Change((one,), ranks, keys, note)


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


def with_checkpointing(actor: PPOActorConfig) -> PPOActorConfig:
    """``actor`` with the activations of every layer recomputed."""
    return actor.model_copy(update={"gradient_checkpointing": True, "checkpoint_every": 1})


def with_fsdp(actor: PPOActorConfig, **changed: int | bool) -> PPOActorConfig:
    """``actor`` with keys of its section fsdp changed."""
    return actor.model_copy(update={"fsdp": actor.fsdp.model_copy(update=changed)})


def fsdp_key(key: str, value: int | bool) -> str:
    """A key of actor.fsdp as a user sets it."""
    return f"config.actor.fsdp.{key}={str(value).lower()}"


def largest_that_fits(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest number up to ``most`` that fits, rounded down if it stays above ``least``, which fits."""
    if fits(most):
        return most
    low, high = least, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(least, low - low % TOKENS_ROUNDED_TO)
