"""``GRPOExperiment``: one experiment, run locally by ``grpo run`` or in a cluster by ``kubectl apply``."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from areal_api.agents import MAX_AGENTS, MAX_NAMES_LENGTH, AgentSpec, GatewaySpec, ToolSpec, code_problems
from areal_api.autoscale import autoscale_problems
from areal_api.bucket import BucketSpec
from areal_api.code import CodeSpec
from areal_api.config import GRPOConfig
from areal_api.pod_containers import Packing
from areal_api.pods import MAX_PODS, MAX_PROCESSES, PodSettings, unknown_claim
from areal_api.quantities import Size
from areal_api.section import CamelSection
from areal_api.server_pools import MAX_POOL_NAMES_LENGTH
from areal_api.server_rules import server_problems
from areal_api.servers import ServersSpec
from areal_api.slurm import SlurmSpec
from areal_api.status import ExperimentStatus

API_VERSION: Literal["areal.dev/v1alpha1"] = "areal.dev/v1alpha1"
KIND: Literal["GRPOExperiment"] = "GRPOExperiment"
MAX_SECONDS = 2**31 - 1
MAX_NAME_LENGTH = 40  # leaves room for the suffixes of pod names and of StatefulSet labels
AccessMode = Literal["ReadWriteMany", "ReadWriteOnce"]


class Metadata(BaseModel):
    """Object metadata. Keys that Kubernetes adds are kept unchanged."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
        description="Name of the experiment: lower-case letters, digits and hyphens.",
    )
    namespace: str | None = Field(None, description="Namespace; null is the current namespace.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations.")


class TrainerSpec(PodSettings):
    """The trainer's ranks, started by torchrun."""

    nodes: int = Field(1, ge=1, le=MAX_PODS, description="Nodes of the trainer, each one pod; on one machine only 1.")
    processes_per_node: int = Field(
        1, ge=1, le=MAX_PROCESSES, description="Ranks per pod; on cuda each rank uses one GPU."
    )
    termination_grace_period_seconds: int = Field(
        180,
        ge=30,
        le=86400,
        description="How long the trainer may finish its step and write a recovery checkpoint.",
        json_schema_extra={"unit": "s"},
    )
    script: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Training script (path or module name) that calls load_expr_config; null is the built-in loop.",
    )

    @property
    def ranks(self) -> int:
        """Processes of the trainer."""
        return self.nodes * self.processes_per_node


class StorageSpec(CamelSection):
    """The volume that trainer and servers share in a cluster, with the run directory, and copies in object storage."""

    size: Size | None = Field(
        None,
        description="Size of the volume; null is what the run writes at most and a quarter more if actor.path is a "
        "published model that grpo check knows, and otherwise 100Gi.",
    )
    storage_class_name: str | None = Field(
        None, max_length=253, description="Storage class; null is the cluster's default."
    )
    access_modes: list[AccessMode] = Field(
        ["ReadWriteMany"],
        min_length=1,
        max_length=2,
        description="Access modes; ReadWriteOnce keeps all pods on one node.",
    )
    shared: bool = Field(
        True,
        description="Whether the servers mount the volume. false: they download published weights from the trainer, so "
        "the trainer alone needs the volume and ReadWriteOnce does not keep them on its node. actor.path must then be "
        "a hub name, or a path in their image or on a volume of theirs.",
    )
    when_deleted: Literal["Retain", "Delete"] = Field(
        "Retain", description="What happens to the volume when the experiment is deleted."
    )
    bucket: BucketSpec | None = Field(
        None, description="S3-compatible storage for copies of checkpoints and results, in every place; null is none."
    )


class RunPolicy(CamelSection):
    """Suspension, retries and clean-up of a run. Only Kubernetes suspends runs and deletes finished ones."""

    suspend: bool = Field(
        False,
        description="Stop the run and delete its pods; false resumes from a checkpoint. Refused outside Kubernetes.",
    )
    backoff_limit: int = Field(
        3,
        ge=0,
        le=1000,
        description="Maximum restarts of a failed trainer; disruptions and lost nodes do not count. Outside "
        "Kubernetes a trainer that fails before its first step is not restarted.",
    )
    active_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=MAX_SECONDS,
        description="Maximum duration of the run since its first start or its last resumption; null is unlimited.",
        json_schema_extra={"unit": "s"},
    )
    pre_running_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=MAX_SECONDS,
        description="Maximum time until the trainer and a server run, with the wait for nodes, at every start of the "
        "trainer; else the run fails. null is unlimited.",
        json_schema_extra={"unit": "s"},
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=MAX_SECONDS,
        description="Time until a finished experiment is deleted, in Kubernetes; null keeps it.",
        json_schema_extra={"unit": "s"},
    )


class ExperimentSpec(CamelSection):
    """What to run, and where."""

    config: GRPOConfig = Field(description="Configuration of the run, with AReaL's key names.")
    servers: ServersSpec = Field(default_factory=ServersSpec, description="SGLang servers.")
    trainer: TrainerSpec = Field(default_factory=TrainerSpec, description="The trainer.")
    packing: Packing | None = Field(
        None, description="Keeps all pods of servers and trainer in one rack or other domain; null is any node."
    )
    code: CodeSpec = Field(default_factory=CodeSpec, description="The user's code, without an image built for it.")
    storage: StorageSpec = Field(default_factory=StorageSpec, description="Shared volume in a cluster.")
    run_policy: RunPolicy = Field(default_factory=RunPolicy, description="Suspension, retries and clean-up.")
    agents: list[AgentSpec] = Field(
        default_factory=list,
        max_length=MAX_AGENTS,
        description="Agents that run in pods and train by rollout.agent.mode online; only in Kubernetes.",
    )
    tools: list[ToolSpec] = Field(
        default_factory=list,
        max_length=MAX_AGENTS,
        description="Tool servers of agents, in pods without any network access; only in Kubernetes.",
    )
    gateway: GatewaySpec = Field(default_factory=GatewaySpec, description="Access to the session gateway.")
    slurm: SlurmSpec = Field(default_factory=SlurmSpec, description="The job of grpo run --on slurm.")

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = [
            *_placement_problems(self),
            *_packing_problems(self),
            *_gpu_problems(self),
            *_agent_problems(self),
            *server_problems(self.config, self.servers.args, device=self.servers.device),
            *_pool_problems(self),
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def has_gateway(self) -> bool:
        """Whether programs outside the trainer open sessions with its gateway."""
        return self.config.rollout.agent.mode == "online"

    @property
    def max_replicas(self) -> int:
        """Number of servers, without those of pools, whose addresses the trainer receives at its start."""
        scale = self.servers.autoscale
        return scale.max if scale is not None else self.servers.max_replicas or self.servers.replicas


def _packing_problems(spec: ExperimentSpec) -> list[str]:
    if spec.packing is None:
        return []
    key = spec.packing.topology_key
    return [
        f"packing.topologyKey is {key}, and {section}.affinity has podAffinity, which says where the pods go already; "
        "remove one"
        for section, pods in (*((one.key, one.servers) for one in spec.servers.groups), ("trainer", spec.trainer))
        if pods.affinity.get("podAffinity")
    ]


def _placement_problems(spec: ExperimentSpec) -> list[str]:
    """``generate/cel_rules.py`` repeats the rules of this function and the next for the API server."""
    servers, trainer = spec.servers, spec.trainer
    problems: list[str] = []
    if servers.max_replicas is not None and servers.replicas > servers.max_replicas:
        problems.append(
            f"servers.replicas is {servers.replicas}, above servers.maxReplicas {servers.max_replicas}; "
            "raise maxReplicas"
        )
    if servers.min_replicas is not None and servers.min_replicas > servers.replicas:
        problems.append(
            f"servers.minReplicas is {servers.min_replicas}, above servers.replicas {servers.replicas}; "
            "lower minReplicas"
        )
    problems += [*autoscale_problems(servers), *_server_nodes_problems(spec)]
    if "ReadWriteMany" not in spec.storage.access_modes and trainer.nodes > 1:
        problems.append(
            f"storage.accessModes is [ReadWriteOnce], trainer.nodes {trainer.nodes}; several nodes need ReadWriteMany"
        )
    actor = spec.config.actor
    layout = actor.parallel.problem(trainer.ranks)
    if layout is not None:
        problems.append(layout)
    else:
        problems += _sharing_problems(spec)
    if actor.weight_update_mode == "distributed":
        problems += [
            f"actor.weight_update_mode is distributed, {one.key}.device {one.servers.device}, trainer.device "
            f"{trainer.device}; a broadcast needs one kind of device: set weight_update_mode=disk"
            for one in servers.groups
            if one.servers.device != trainer.device
        ]
    if actor.weight_deltas and (actor.weight_update_mode != "disk" or spec.storage.shared):
        shared = str(spec.storage.shared).lower()
        problems.append(
            f"actor.weight_deltas is true, actor.weight_update_mode {actor.weight_update_mode}, storage.shared {shared}"
            "; only servers that download files get deltas: set weight_update_mode=disk and storage.shared=false, or "
            "weight_deltas=false"
        )
    return problems


def _sharing_problems(spec: ExperimentSpec) -> list[str]:
    """Prompts and copies of the model that the ranks cannot share."""
    actor, ranks = spec.config.actor, spec.trainer.ranks
    problems: list[str] = []
    batch_size, shares = spec.config.train_dataset.batch_size, ranks // actor.parallel.ranks
    if batch_size % shares:
        parallel = f" ÷ actor.parallel {actor.parallel.ranks}" if actor.parallel.ranks > 1 else ""
        problems.append(
            f"train_dataset.batch_size is {batch_size}, not a multiple of the {shares} ranks of the trainer "
            f"(trainer.nodes × trainer.processesPerNode{parallel}); make it one"
        )
    replicas = actor.replicas_problem(ranks, tensor=actor.parallel.tensor)
    if replicas is not None:
        problems.append(replicas)
    copies, expert = actor.fsdp.replicas or 1, actor.parallel.expert
    if replicas is None and ranks % (copies * expert):
        problems.append(
            f"actor.parallel.expert is {expert}, which does not divide the {ranks} ranks of the trainer "
            f"(trainer.nodes × trainer.processesPerNode{f' ÷ actor.fsdp.replicas {copies}' if copies > 1 else ''}); "
            "choose a divisor"
        )
    return problems


def _server_nodes_problems(spec: ExperimentSpec) -> list[str]:
    problems: list[str] = []
    for one in spec.servers.groups:
        parallel, nodes = one.servers.tensor_parallel, one.servers.nodes_per_server
        if parallel % nodes:
            problems.append(
                f"{one.key}.tensorParallel is {parallel}, not a multiple of {one.key}.nodesPerServer {nodes}; "
                "make it one"
            )
        if nodes > 1 and not spec.storage.shared:
            problems.append(
                f"storage.shared is false, {one.key}.nodesPerServer {nodes}; only the first node of a server would "
                "download published weights: set storage.shared to true"
            )
        elif nodes > 1 and "ReadWriteMany" not in spec.storage.access_modes:
            problems.append(
                f"storage.accessModes is [ReadWriteOnce], {one.key}.nodesPerServer {nodes}; several nodes need "
                "ReadWriteMany"
            )
    nodes, in_pools = spec.servers.nodes_per_server, sum(one.servers.pods for one in spec.servers.groups[1:])
    pods = spec.max_replicas * nodes + in_pools
    if pods > MAX_PODS:
        more = f" and {in_pools} of servers.pools" if in_pools else ""
        problems.append(
            f"the servers have {pods} pods ({spec.max_replicas} servers × servers.nodesPerServer {nodes}{more}), above "
            f"{MAX_PODS}; lower one"
        )
    return problems


def _pool_problems(spec: ExperimentSpec) -> list[str]:
    """What contradicts ``servers.pools``. ``generate/cel_rules.py`` repeats the rules, except those of SGLang."""
    servers = spec.servers
    if not servers.pools:
        return []
    problems: list[str] = []
    listed = [pool.name for pool in servers.pools]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        problems.append(f"servers.pools has several entries with the name {twice[0]}; give each its own")
    if servers.autoscale is not None:
        problems.append(
            "servers.autoscale is set, and servers.pools is not empty; the operator chooses a number of equal servers: "
            "remove one"
        )
    known = server_problems(spec.config, servers.args, device=servers.device)
    for one in servers.groups[1:]:
        claim = unknown_claim(one.servers)
        if claim is not None:
            problems.append(f"{one.key}: {claim}")
        found = server_problems(spec.config, one.servers.args, device=one.servers.device)
        problems += [f"{one.key}: {problem}" for problem in found if problem not in known]
    return problems


def _agent_problems(spec: ExperimentSpec) -> list[str]:
    problems: list[str] = []
    for kind, entries in (("agents", spec.agents), ("tools", spec.tools)):
        listed = [entry.name for entry in entries]
        twice = sorted({name for name in listed if listed.count(name) > 1})
        if twice:
            problems.append(f"{kind} has several entries with the name {twice[0]}; give each its own")
        problems += code_problems(kind, entries, spec.code)
    mode = spec.config.rollout.agent.mode
    if mode != "online" and (spec.agents or spec.gateway.allow_from):
        key = "agents is not empty" if spec.agents else "gateway.allowFrom is not empty"
        problems.append(
            f"{key}, and rollout.agent.mode is {mode}: the trainer runs its own agent; set mode to online, or leave it "
            "empty"
        )
    return problems


def _gpu_problems(spec: ExperimentSpec) -> list[str]:
    cluster, servers, trainer = spec.config.cluster, spec.servers, spec.trainer
    per_node = cluster.n_gpus_per_node
    if per_node is None:
        return []
    problems: list[str] = []
    groups = [one for one in servers.groups if one.servers.device == "cuda"]
    server_gpus = sum(one.servers.replicas * one.servers.tensor_parallel for one in groups)
    trainer_gpus = trainer.ranks if trainer.device == "cuda" else 0
    total = None if cluster.n_nodes is None else cluster.n_nodes * per_node
    if total is not None and server_gpus + trainer_gpus > total:
        problems.append(
            f"{server_gpus + trainer_gpus} GPUs are needed ({server_gpus} by servers, {trainer_gpus} by the trainer), "
            f"cluster.n_nodes × cluster.n_gpus_per_node is {total}; lower servers.replicas or trainer.processesPerNode"
        )
    if trainer_gpus and trainer.processes_per_node > per_node:
        problems.append(
            f"trainer.processesPerNode is {trainer.processes_per_node}, above cluster.n_gpus_per_node {per_node}; "
            "use more trainer.nodes"
        )
    problems += [
        f"{one.key}.tensorParallel is {one.servers.tensor_parallel}, above cluster.n_gpus_per_node {per_node} × "
        f"{one.key}.nodesPerServer {one.servers.nodes_per_server}; lower it, or raise nodesPerServer"
        for one in groups
        if one.servers.processes_per_pod > per_node
    ]
    return problems


class GRPOExperiment(CamelSection):
    """An experiment: the custom resource, and the file that ``grpo run`` reads."""

    api_version: Literal["areal.dev/v1alpha1"] = Field(API_VERSION, description="Version of this schema.")
    kind: Literal["GRPOExperiment"] = Field(KIND, description="Kind of the object.")
    metadata: Metadata = Field(description="Name, labels and annotations.")
    spec: ExperimentSpec = Field(description="What to run, and where.")
    status: ExperimentStatus | None = Field(None, description="Written by the operator.")

    @model_validator(mode="before")
    @classmethod
    def _default_experiment_name(cls, values: Any) -> Any:
        """``spec.config.experiment_name`` defaults to ``metadata.name``."""
        metadata, spec = _dict(values, "metadata"), _dict(values, "spec")
        config = _dict(spec, "config")
        if metadata is None or spec is None or config is None or config.get("experiment_name") is not None:
            return values
        named = {**config, "experiment_name": metadata.get("name", "")}
        return {**values, "spec": {**spec, "config": named}}

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for pool in self.spec.servers.pools:
            if len(self.name) + len(pool.name) > MAX_POOL_NAMES_LENGTH:
                raise ValueError(
                    f"spec.servers.pools: the name {pool.name} and the experiment's name {self.name} have together "
                    f"more than {MAX_POOL_NAMES_LENGTH} characters; shorten one"
                )
        for kind, entries in (("agents", self.spec.agents), ("tools", self.spec.tools)):
            for entry in entries:
                if len(self.name) + len(entry.name) > MAX_NAMES_LENGTH:
                    raise ValueError(
                        f"spec.{kind}: the name {entry.name} and the experiment's name {self.name} have together more "
                        f"than {MAX_NAMES_LENGTH} characters; shorten one"
                    )
        return self

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name


def _dict(values: Any, key: str) -> dict[str, Any] | None:
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, dict) else None
