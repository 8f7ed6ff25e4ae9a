"""Whether an experiment fits: GPU memory, disk, placement and lengths, with the fix for each problem.

Everything is computed from the experiment and the models' config.json; no GPU, weights or network is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from areal_api.actor import PPOActorConfig
from areal_api.config import GRPOConfig, WorkflowConfig
from areal_api.experiment import ExperimentSpec
from areal_api.quantities import quantity_bytes
from areal_api.sizing.combinations import (
    combination_problems,
    layout_warnings,
    server_warnings,
    tensor_parallel_sizes,
    useless_settings,
)
from areal_api.sizing.disk import DiskUse, disk_use
from areal_api.sizing.fixes import trainer_fix
from areal_api.sizing.gpus import GPUS, Gpu
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.placement import pods_of, unplaced
from areal_api.sizing.replicas import model_replicas
from areal_api.sizing.server_memory import ServerMemory, server_memory
from areal_api.sizing.storage import storage_size
from areal_api.sizing.trained_types import training_problem
from areal_api.sizing.trainer_memory import TrainerMemory, trainer_memory

GIB = 2**30
UNKNOWN_GPU = "GPU memory: the GPU is unknown; name it with grpo check --gpu, or in trainer.nodeSelector"
EAGER = (
    "memory of attention: actor.attn_impl eager keeps the attention weights of whole sequences, which are not computed"
)
LONGER_CONTEXT = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"  # a variable of SGLang
MAX_LISTED = 16
REFERENCE_GPU = "H100-80GB"  # for the servers' KV cache if the GPU is unknown


@dataclass(frozen=True)
class Surroundings:
    """Where the experiment is to run; what is None is unknown and not checked."""

    gpu: Gpu | None = None
    nodes: Sequence[int] | None = None  # free GPUs of each node
    free_disk_bytes: int | None = None  # of the run directory; None takes the volume's size
    steps_per_epoch: int | None = None
    from_hub: bool = False
    problems: Sequence[str] = ()  # of the place itself, such as a driver that is too old


@dataclass(frozen=True)
class UnknownModel:
    """A model whose config.json cannot be read here, or whose sizes are not known. It is not guessed."""

    reason: str
    kind: str = ""  # its type in transformers, if that is known


@dataclass(frozen=True)
class Report:
    """The answer of ``grpo check``. ``problems`` is empty if and only if the experiment fits."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]  # settings without effect, and sequences that may be too long
    not_checked: tuple[str, ...]  # what could not be compared, and why
    tokens_per_microbatch: int
    trainer: TrainerMemory | None
    server: ServerMemory | None
    disk: DiskUse | None

    @property
    def fits(self) -> bool:
        """Whether there is no obstacle."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For programs. Sizes are in bytes; trainer and server are null if they run on the CPU."""
        trainer = None
        if self.trainer is not None:
            trainer = {"bytes_per_gpu": {**self.trainer.by_part(), "total": self.trainer.total}}
        return {
            "fits": self.fits,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "not_checked": list(self.not_checked),
            "tokens_per_microbatch": self.tokens_per_microbatch,
            "trainer": trainer,
            "server": None if self.server is None else asdict(self.server),
            "disk_bytes": None if self.disk is None else self.disk.total_bytes,
            "disk": None if self.disk is None else asdict(self.disk),
        }


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


def size_up(spec: ExperimentSpec, model: ModelShape | UnknownModel, where: Surroundings) -> Report:
    """Compute what ``spec`` needs with ``model``, and compare it with ``where``."""
    config = spec.config
    tokens = tokens_per_microbatch(spec)
    warnings = (*useless_settings(spec), *length_warnings(config), *server_warnings(spec), *layout_warnings(spec))
    if isinstance(model, UnknownModel):
        refused = training_problem(model.kind, attn_impl=config.actor.attn_impl)
        problems = (
            *where.problems,
            *(() if refused is None else (refused,)),
            *microbatch_problems(config),
            *disk_problems(spec, DiskUse(0, 0, 0, 0), where.free_disk_bytes),
            *placement_problems(spec, where.nodes),
        )
        reason = f"memory, disk and the model's limits: {model.reason}"
        return Report(problems, warnings, (reason,), tokens, None, None, None)
    trainer = server = None
    if spec.trainer.device == "cuda":
        actor = with_replicas(spec, model, where.gpu)
        trainer = trainer_memory(model, actor, ranks=spec.trainer.ranks, tokens=tokens, ref=config.ref)
    if spec.servers.device == "cuda":
        server = server_memory(
            model,
            config.sglang,
            gpu=where.gpu or GPUS[REFERENCE_GPU],
            tensor_parallel=spec.servers.tensor_parallel,
            longest=longest_sequence(config),
        )
    disk = disk_use(model, config, steps_per_epoch=where.steps_per_epoch, from_hub=where.from_hub)
    problems = (
        *where.problems,
        *microbatch_problems(config),
        *model_length_problems(spec, model),
        *combination_problems(spec, model),
        *trainer_problems(spec, model, trainer, where.gpu, tokens),
        *server_problems(spec, model, server, where.gpu),
        *disk_problems(spec, disk, where.free_disk_bytes),
        *placement_problems(spec, where.nodes),
    )
    compared = where.gpu is not None or (trainer is None and server is None)
    not_checked = (*(() if compared else (UNKNOWN_GPU,)), *(() if trainer is None else not_counted(config)))
    return Report(problems, warnings, not_checked, tokens, trainer, server, disk)


def not_counted(config: GRPOConfig) -> Iterator[str]:
    """What the trainer's memory does not contain."""
    if config.actor.attn_impl == "eager":
        yield EAGER
    if config.ref is not None and config.actor.kl_ctl > 0 and config.ref.path != config.actor.path:
        yield f"memory of the reference model {config.ref.path}: it counts as large as that of actor.path"


def longest_sequence(config: GRPOConfig) -> int:
    """Tokens of the longest prompt with its longest completion.

    Without ``train_dataset.max_length`` the prompts are unknown and count as empty: what is too long then is too long
    for certain.
    """
    prompt = config.train_dataset.max_length or 0
    return min(config.gconfig.max_tokens, prompt + config.gconfig.max_new_tokens)


def tokens_per_microbatch(spec: ExperimentSpec) -> int:
    """Most tokens of one forward and backward pass, which the ranks of ``actor.parallel`` share.

    Without ``max_tokens_per_mb`` a rank's whole share of a minibatch is one pass; a sequence is never split.
    """
    config = spec.config
    longest = longest_sequence(config)
    if config.actor.mb_spec.max_tokens_per_mb is not None:
        return max(config.actor.mb_spec.max_tokens_per_mb, longest)
    shares = spec.trainer.ranks // config.actor.parallel.ranks
    sequences = -(-config.train_dataset.batch_size * config.gconfig.n_samples // shares)
    per_minibatch = -(-sequences // config.actor.ppo_n_minibatches)
    return -(-per_minibatch // config.actor.mb_spec.n_mbs) * longest


def microbatch_problems(config: GRPOConfig) -> Iterator[str]:
    """Sequences that a microbatch cannot hold, which would end the run at the first of them."""
    longest, bound = longest_sequence(config), config.actor.mb_spec.max_tokens_per_mb
    if bound is not None and longest > bound:
        yield (
            f"actor.mb_spec.max_tokens_per_mb is {bound}, but a sequence can have {longest} tokens "
            f"({_length_keys(config)}); set actor.mb_spec.max_tokens_per_mb={longest} or lower gconfig.max_new_tokens"
        )


def length_warnings(config: GRPOConfig) -> Iterator[str]:
    """Sequences that may become too long, because nothing but ``gconfig.max_tokens`` limits prompts or turns."""
    bound, most = config.actor.mb_spec.max_tokens_per_mb, config.gconfig.max_tokens
    unlimited = config.train_dataset.max_length is None or config.workflow.path != WorkflowConfig().path
    if bound is not None and longest_sequence(config) <= bound < most and unlimited:
        yield (
            f"a sequence may have up to {most} tokens (gconfig.max_tokens), and one of more than {bound} "
            f"(actor.mb_spec.max_tokens_per_mb) would end the run; set gconfig.max_tokens={bound}"
        )


def model_length_problems(spec: ExperimentSpec, shape: ModelShape) -> Iterator[str]:
    """Sequences that the model was not made for. A context_length that is too short is refused by the experiment."""
    config = spec.config
    longest, context = longest_sequence(config), config.sglang.context_length
    if shape.longest_packed is not None and longest > shape.longest_packed:
        yield (
            f"a sequence can have {longest} tokens ({_length_keys(config)}), but beyond {shape.longest_packed} the "
            "rotary embedding of this model depends on the longest sequence of a pass, which ends the run; set "
            f"gconfig.max_tokens={shape.longest_packed}"
        )
    if shape.longest is None or any(entry.get("name") == LONGER_CONTEXT for entry in spec.servers.env):
        return
    if context is not None and context > shape.longest:
        yield (
            f"sglang.context_length is {context}, but the model was made for {shape.longest} "
            f"(max_position_embeddings); set it to at most that, or the variable {LONGER_CONTEXT}=1 in servers.env"
        )
    elif context is None and longest > shape.longest:
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
    if memory is None or gpu is None or memory.total <= gpu.usable_bytes:
        return
    largest = sorted(memory.by_part().items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gib(size)}" for name, size in largest)
    fix = trainer_fix(spec, shape, gpu, tokens=tokens, longest=longest_sequence(spec.config))
    yield (
        f"the trainer needs {gib(memory.total)} per GPU ({parts}), but {gpu.name} has {gib(gpu.usable_bytes)} to use; "
        f"{fix}"
    )


def server_problems(
    spec: ExperimentSpec, shape: ModelShape, memory: ServerMemory | None, gpu: Gpu | None
) -> Iterator[str]:
    """Servers whose KV cache cannot hold one sequence."""
    if memory is None or gpu is None or memory.sequences >= 1:
        return
    longest = longest_sequence(spec.config)
    sizes = (n for n in tensor_parallel_sizes(shape.heads, shape.kv_heads) if n > spec.servers.tensor_parallel)
    fitting = (
        n
        for n in sizes
        if server_memory(shape, spec.config.sglang, gpu=gpu, tensor_parallel=n, longest=longest).sequences >= 1
    )
    larger = next(fitting, None)
    fix = "lower gconfig.max_new_tokens" if larger is None else f"set servers.tensorParallel={larger}"
    yield (
        f"a server has {gib(memory.weights_bytes)} of weights per GPU and room for {memory.kv_tokens} tokens of KV "
        f"cache on {gpu.name}, but a sequence can have {longest} tokens; {fix}"
    )


def disk_problems(spec: ExperimentSpec, disk: DiskUse, free_bytes: int | None) -> Iterator[str]:
    """A volume, or the disk of this machine, that is too small."""
    needed = disk.total_bytes
    if free_bytes is not None:
        if needed > free_bytes:
            yield (
                f"the run needs {gib(needed)}, but the file system of cluster.fileroot has {gib(free_bytes)} "
                "free; free some, set cluster.fileroot to another disk, or lower config.recover.keep"
            )
        return
    volume = storage_size(spec)
    size = quantity_bytes(volume)
    if needed > size:
        yield (
            f"storage.size is {volume}{'' if spec.storage.size else ' by default'}, but the run needs {gib(needed)}; "
            f"set storage.size={-(-needed // GIB)}Gi or lower config.recover.keep"
        )


def placement_problems(spec: ExperimentSpec, nodes: Sequence[int] | None) -> Iterator[str]:
    """Pods that find no node with enough free GPUs, even if the others are packed as tightly as possible."""
    if nodes is None:
        return
    one_node = "ReadWriteMany" not in spec.storage.access_modes and spec.storage.shared
    left = unplaced(pods_of(spec), sorted(nodes)[-1:] if one_node else nodes)
    if left:
        names = ", ".join(f"{pod.name} ({pod.gpus} GPUs)" for pod in left[:4]) + (", …" if len(left) > 4 else "")
        why = ", and storage.accessModes [ReadWriteOnce] keeps all pods on one of them" if one_node else ""
        yield (
            f"no node has room for {names}: the nodes have {_listed(nodes)} GPUs free{why}; lower "
            "servers.replicas, servers.tensorParallel or trainer.processesPerNode"
        )


def _listed(nodes: Sequence[int]) -> str:
    shown = ", ".join(map(str, nodes[:MAX_LISTED])) or "no"
    return f"{shown}, …" if len(nodes) > MAX_LISTED else shown


def gib(size_bytes: int) -> str:
    """A size for people, in GiB."""
    return f"{size_bytes / GIB:.1f} GiB"
