"""Whether an experiment fits: GPU memory, disk, placement and lengths, with the fix for each problem.

Everything is computed from the experiment and the models' config.json; no GPU, weights or network is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from areal_api.config import GRPOConfig, SGLangConfig
from areal_api.experiment import ExperimentSpec
from areal_api.quantities import quantity_bytes
from areal_api.servers import ServerGroup, ServersSpec
from areal_api.sizing.combinations import (
    combination_problems,
    layout_warnings,
    server_warnings,
    tensor_parallel_sizes,
    useless_settings,
)
from areal_api.sizing.disk import DiskUse, disk_use
from areal_api.sizing.fixes import trainer_fix
from areal_api.sizing.gpus import GPUS, Gpu, gpu_of_labels
from areal_api.sizing.lengths import (
    length_warnings,
    longest_sequence,
    microbatch_problems,
    model_length_problems,
    tokens_per_microbatch,
)
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.placement import pods_of, unplaced
from areal_api.sizing.replicas import with_replicas
from areal_api.sizing.server_memory import ServerMemory, server_memory
from areal_api.sizing.storage import storage_size
from areal_api.sizing.trained_types import training_problem
from areal_api.sizing.trainer_memory import TrainerMemory, trainer_memory

GIB = 2**30
UNKNOWN_GPU = "GPU memory: the GPU is unknown; name it with grpo check --gpu, or in trainer.nodeSelector"
EAGER = (
    "memory of attention: actor.attn_impl eager keeps the attention weights of whole sequences, which are not computed"
)
MAX_LISTED = 16
REFERENCE_GPU = "H100-80GB"  # for the servers' KV cache if the GPU is unknown


@dataclass(frozen=True)
class Surroundings:
    """Where the experiment is to run; what is None is unknown and not checked."""

    gpu: Gpu | None = None
    nodes: Sequence[int] | None = None  # free GPUs of each node
    free_disk_bytes: int | None = None  # of the run directory; None takes the volume's size
    by_selectors: bool = True  # whether nodeSelector has an effect and may name the GPU of servers, before gpu
    steps_per_epoch: int | None = None
    from_hub: bool = False
    problems: Sequence[str] = ()  # of the place itself, such as a driver that is too old

    def gpu_of(self, servers: ServersSpec) -> Gpu | None:
        """The GPU of these servers."""
        return (gpu_of_labels(servers.node_selector) if self.by_selectors else None) or self.gpu


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
    pools: Mapping[str, ServerMemory] = field(default_factory=dict)  # of each pool of servers on GPUs

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
            "pools": {name: asdict(memory) for name, memory in self.pools.items()},
            "disk_bytes": None if self.disk is None else self.disk.total_bytes,
            "disk": None if self.disk is None else asdict(self.disk),
        }


def size_up(spec: ExperimentSpec, model: ModelShape | UnknownModel, where: Surroundings) -> Report:
    """Compute what ``spec`` needs with ``model``, and compare it with ``where``."""
    config = spec.config
    tokens = tokens_per_microbatch(config, ranks=spec.trainer.ranks)
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
    trainer = None
    if spec.trainer.device == "cuda":
        actor = with_replicas(spec, model, where.gpu)
        trainer = trainer_memory(model, actor, ranks=spec.trainer.ranks, tokens=tokens, ref=config.ref)
    servers = _servers_memory(spec, model, where)
    disk = disk_use(model, config, steps_per_epoch=where.steps_per_epoch, from_hub=where.from_hub)
    problems = (
        *where.problems,
        *microbatch_problems(config),
        *model_length_problems(spec, model),
        *combination_problems(spec, model),
        *trainer_problems(spec, model, trainer, where.gpu),
        *(
            problem
            for one in spec.servers.groups
            for problem in server_problems(spec, one, model, servers.get(one.pool), where.gpu_of(one.servers))
        ),
        *disk_problems(spec, disk, where.free_disk_bytes),
        *placement_problems(spec, where.nodes),
    )
    sized = [one for one in spec.servers.groups if one.pool in servers]
    unknown = (trainer is not None and where.gpu is None) or any(where.gpu_of(one.servers) is None for one in sized)
    not_checked = (*((UNKNOWN_GPU,) if unknown else ()), *(() if trainer is None else not_counted(config)))
    pools = {one.pool: servers[one.pool] for one in sized if one.pool is not None}
    return Report(problems, warnings, not_checked, tokens, trainer, servers.get(None), disk, pools)


def _servers_memory(spec: ExperimentSpec, model: ModelShape, where: Surroundings) -> dict[str | None, ServerMemory]:
    """Of the servers on GPUs, by pool."""
    return {
        one.pool: server_memory(
            model,
            _with_arguments(spec.config.sglang, one.servers.args),
            gpu=where.gpu_of(one.servers) or GPUS[REFERENCE_GPU],
            tensor_parallel=one.servers.tensor_parallel,
            longest=longest_sequence(spec.config),
        )
        for one in spec.servers.groups
        if one.servers.device == "cuda"
    }


def _with_arguments(sglang: SGLangConfig, args: Mapping[str, Any]) -> SGLangConfig:
    """The configuration of servers with what servers.args say about memory. SGLang checks other types of values."""
    kinds = {"mem_fraction_static": float, "max_total_tokens": int}
    changed = {name: args[name] for name, kind in kinds.items() if type(args.get(name)) is kind}
    return sglang.model_copy(update=changed)


def not_counted(config: GRPOConfig) -> Iterator[str]:
    """What the trainer's memory does not contain."""
    if config.actor.attn_impl == "eager":
        yield EAGER
    if config.ref is not None and config.actor.kl_ctl > 0 and config.ref.path != config.actor.path:
        yield f"memory of the reference model {config.ref.path}: it counts as large as that of actor.path"


def trainer_problems(
    spec: ExperimentSpec, shape: ModelShape, memory: TrainerMemory | None, gpu: Gpu | None
) -> Iterator[str]:
    """A trainer that needs more memory than the GPU has, and the smallest change with which it fits."""
    if memory is None or gpu is None or memory.total <= gpu.usable_bytes:
        return
    largest = sorted(memory.by_part().items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {gib(size)}" for name, size in largest)
    yield (
        f"the trainer needs {gib(memory.total)} per GPU ({parts}), but {gpu.name} has {gib(gpu.usable_bytes)} to use; "
        f"{trainer_fix(spec, shape, gpu)}"
    )


def server_problems(
    spec: ExperimentSpec, group: ServerGroup, shape: ModelShape, memory: ServerMemory | None, gpu: Gpu | None
) -> Iterator[str]:
    """Servers whose KV cache cannot hold one sequence."""
    if memory is None or gpu is None or memory.sequences >= 1:
        return
    longest, sglang = longest_sequence(spec.config), _with_arguments(spec.config.sglang, group.servers.args)
    sizes = (n for n in tensor_parallel_sizes(shape.heads, shape.kv_heads) if n > group.servers.tensor_parallel)
    fitting = (
        n for n in sizes if server_memory(shape, sglang, gpu=gpu, tensor_parallel=n, longest=longest).sequences >= 1
    )
    larger = next(fitting, None)
    fix = "lower gconfig.max_new_tokens" if larger is None else f"set {group.key}.tensorParallel={larger}"
    who = "a server" if group.pool is None else f"a server of pool {group.pool}"
    yield (
        f"{who} has {gib(memory.weights_bytes)} of weights per GPU and room for {memory.kv_tokens} tokens of KV "
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
