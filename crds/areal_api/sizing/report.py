"""Whether an experiment fits: GPU memory, disk, placement and lengths, with the fix for each problem.

Everything is computed from the experiment and the models' config.json; no GPU, weights or network is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from areal_api.actor import PPOActorConfig
from areal_api.config import GRPOConfig
from areal_api.experiment import ExperimentSpec
from areal_api.quantities import quantity_bytes
from areal_api.sizing.disk import DiskUse, disk_use
from areal_api.sizing.gpus import GPUS, Gpu
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.placement import pods_of, unplaced
from areal_api.sizing.server_memory import ServerMemory, server_memory
from areal_api.sizing.trainer_memory import TrainerMemory, trainer_memory

GIB = 2**30
USABLE = 0.95  # of a GPU: the rest is lost to fragmentation
MAX_RANKS_TRIED = 1024


@dataclass(frozen=True)
class Surroundings:
    """Where the experiment is to run; what is None is unknown and not checked."""

    gpu: Gpu | None = None
    nodes: Sequence[int] | None = None  # free GPUs of each node
    free_disk_bytes: int | None = None  # of the run directory; None takes spec.storage.size
    steps_per_epoch: int | None = None
    from_hub: bool = False


@dataclass(frozen=True)
class Report:
    """The answer of ``grpo check``. ``problems`` is empty if and only if the experiment fits."""

    problems: tuple[str, ...]
    tokens_per_microbatch: int
    trainer: TrainerMemory | None
    server: ServerMemory | None
    disk: DiskUse

    @property
    def fits(self) -> bool:
        """Whether there is no obstacle."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For programs. Sizes are in bytes; trainer and server are null if they run on the CPU."""
        trainer = None
        if self.trainer is not None:
            trainer = {"bytes_per_gpu": {**self.trainer.by_part(), "total": self.trainer.total}}
        server = None
        if self.server is not None:
            server = asdict(self.server)
        return {
            "fits": self.fits,
            "problems": list(self.problems),
            "tokens_per_microbatch": self.tokens_per_microbatch,
            "trainer": trainer,
            "server": server,
            "disk_bytes": self.disk.total_bytes,
            "disk": asdict(self.disk),
        }


def size_up(spec: ExperimentSpec, shape: ModelShape, where: Surroundings) -> Report:
    """Compute what ``spec`` needs with a model of ``shape``, and compare it with ``where``."""
    config = spec.config
    tokens = tokens_per_microbatch(config)
    trainer = server = None
    if spec.trainer.device == "cuda":
        trainer = trainer_memory(shape, config.actor, ranks=spec.trainer.ranks, tokens=tokens)
    if spec.servers.device == "cuda":
        server = server_memory(
            shape,
            config.sglang,
            gpu=where.gpu or GPUS["H100-80GB"],
            tensor_parallel=spec.servers.tensor_parallel,
            longest=longest_sequence(config),
        )
    disk = disk_use(shape, config, steps_per_epoch=where.steps_per_epoch, from_hub=where.from_hub)
    problems = (
        *length_problems(config, shape),
        *trainer_problems(spec, shape, trainer, where.gpu, tokens),
        *server_problems(spec, server, where.gpu),
        *disk_problems(spec, disk, where.free_disk_bytes),
        *placement_problems(spec, where.nodes),
    )
    return Report(problems, tokens, trainer, server, disk)


def longest_sequence(config: GRPOConfig) -> int:
    """Tokens of the longest prompt with its longest completion.

    Without ``train_dataset.max_length`` the prompts are unknown and count as empty: what is too long then is too long
    for certain.
    """
    prompt = config.train_dataset.max_length or 0
    return min(config.gconfig.max_tokens, prompt + config.gconfig.max_new_tokens)


def tokens_per_microbatch(config: GRPOConfig) -> int:
    """Most tokens of one forward and backward pass on one rank.

    Without ``max_tokens_per_mb`` a rank's whole share of a minibatch is one pass; a sequence is never split.
    """
    longest = longest_sequence(config)
    if config.actor.mb_spec.max_tokens_per_mb is not None:
        return max(config.actor.mb_spec.max_tokens_per_mb, longest)
    sequences = config.train_dataset.batch_size * config.gconfig.n_samples
    per_minibatch = -(-sequences // config.actor.ppo_n_minibatches)
    return -(-per_minibatch // config.actor.mb_spec.n_mbs) * longest


def length_problems(config: GRPOConfig, shape: ModelShape) -> Iterator[str]:
    """Sequences that a microbatch, the servers or the model cannot hold."""
    longest, bound = longest_sequence(config), config.actor.mb_spec.max_tokens_per_mb
    if bound is not None and longest > bound:
        yield (
            f"actor.mb_spec.max_tokens_per_mb is {bound}, but a sequence can have {longest} tokens "
            f"({_length_keys(config)}); set actor.mb_spec.max_tokens_per_mb={longest} or lower gconfig.max_new_tokens"
        )
    # A context_length that is too short is refused when the experiment is read.
    if config.sglang.context_length is None and shape.longest is not None and longest > shape.longest:
        yield (
            f"a sequence can have {longest} tokens ({_length_keys(config)}), but the model was made for "
            f"{shape.longest} (max_position_embeddings); set gconfig.max_tokens={shape.longest}"
        )


def _length_keys(config: GRPOConfig) -> str:
    keys = f"gconfig.max_tokens {config.gconfig.max_tokens}, gconfig.max_new_tokens {config.gconfig.max_new_tokens}"
    prompt = config.train_dataset.max_length
    return keys if prompt is None else f"{keys}, train_dataset.max_length {prompt}"


def trainer_problems(
    spec: ExperimentSpec, shape: ModelShape, memory: TrainerMemory | None, gpu: Gpu | None, tokens: int
) -> Iterator[str]:
    """A trainer that needs more memory than the GPU has, and the smallest change with which it fits."""
    if memory is None or gpu is None or memory.total <= USABLE * gpu.bytes:
        return
    largest = sorted(memory.by_part().items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gib(size)}" for name, size in largest)
    yield (
        f"the trainer needs {gib(memory.total)} per GPU ({parts}), but {gpu.name} has "
        f"{gib(int(USABLE * gpu.bytes))} to use; {trainer_fix(spec, shape, gpu, tokens)}"
    )


def trainer_fix(spec: ExperimentSpec, shape: ModelShape, gpu: Gpu, tokens: int) -> str:
    """The first change, from the cheapest to the costliest, with which the trainer fits."""
    actor, trainer = spec.config.actor, spec.trainer
    longest = longest_sequence(spec.config)

    def fits(config: PPOActorConfig, *, ranks: int = trainer.ranks, tokens: int = tokens) -> bool:
        return trainer_memory(shape, config, ranks=ranks, tokens=tokens).total <= USABLE * gpu.bytes

    checkpointed = actor.model_copy(update={"gradient_checkpointing": True})
    prefix = "" if actor.gradient_checkpointing else "config.actor.gradient_checkpointing=true "
    if prefix and fits(checkpointed):
        return f"set {prefix.strip()}"
    if longest < tokens and fits(checkpointed, tokens=longest):
        return f"set {prefix}config.actor.mb_spec.max_tokens_per_mb={longest}"
    ranks = trainer.ranks * 2
    while ranks <= MAX_RANKS_TRIED:
        if fits(checkpointed, ranks=ranks, tokens=longest):
            return (
                f"set {prefix}config.actor.mb_spec.max_tokens_per_mb={longest} and use {ranks} ranks "
                "(trainer.nodes × trainer.processesPerNode)"
            )
        ranks *= 2
    offloaded = checkpointed.model_copy(update={"fsdp": actor.fsdp.model_copy(update={"offload_params": True})})
    if fits(offloaded, tokens=longest):
        return (
            f"set {prefix}config.actor.mb_spec.max_tokens_per_mb={longest} and config.actor.fsdp.offload_params=true, "
            "which keeps the optimizer in host memory"
        )
    return "shorten the sequences (gconfig.max_new_tokens) or take a smaller model or a larger GPU"


def server_problems(spec: ExperimentSpec, memory: ServerMemory | None, gpu: Gpu | None) -> Iterator[str]:
    """Servers whose KV cache cannot hold one sequence."""
    if memory is None or gpu is None or memory.sequences >= 1:
        return
    longest, parallel = longest_sequence(spec.config), spec.servers.tensor_parallel
    yield (
        f"a server has {gib(memory.weights_bytes)} of weights per GPU and room for {memory.kv_tokens} tokens of KV "
        f"cache on {gpu.name}, but a sequence can have {longest} tokens; set servers.tensorParallel={2 * parallel} or "
        "lower gconfig.max_new_tokens"
    )


def disk_problems(spec: ExperimentSpec, disk: DiskUse, free_bytes: int | None) -> Iterator[str]:
    """A volume, or the disk of this machine, that is too small."""
    needed = disk.total_bytes
    if free_bytes is not None:
        if needed > free_bytes:
            yield (
                f"the run writes up to {gib(needed)}, but the file system of cluster.fileroot has {gib(free_bytes)} "
                "free; free some, set cluster.fileroot to another disk, or lower config.recover.keep"
            )
        return
    size = quantity_bytes(spec.storage.size)
    if needed > size:
        yield (
            f"storage.size is {spec.storage.size}, but the run writes up to {gib(needed)}; "
            f"set storage.size={-(-needed // GIB)}Gi or lower config.recover.keep"
        )


def placement_problems(spec: ExperimentSpec, nodes: Sequence[int] | None) -> Iterator[str]:
    """Pods that find no node with enough free GPUs, even if the others are packed as tightly as possible."""
    if nodes is None:
        return
    left = unplaced(pods_of(spec), nodes)
    if left:
        names = ", ".join(f"{pod.name} ({pod.gpus} GPUs)" for pod in left[:4]) + (", …" if len(left) > 4 else "")
        yield (
            f"no node has room for {names}: the nodes have {', '.join(map(str, nodes)) or 'no'} GPUs free; lower "
            "servers.replicas, servers.tensorParallel or trainer.processesPerNode"
        )


def gib(size_bytes: int) -> str:
    """A size for people, in GiB."""
    return f"{size_bytes / GIB:.1f} GiB"
