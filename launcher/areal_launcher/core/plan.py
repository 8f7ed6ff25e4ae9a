"""What a run starts, decided before anything is started. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_api import names
from areal_api.commands import CodePaths, server_command, trainer_command
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_api.time_limits import TimeLimits
from areal_launcher.core.place import HOST, PORT, SERVERS, ProcessSpec
from areal_launcher.core.servers import ServerLimits

GRACE_S = 120.0  # for the trainer's recovery checkpoint after the first signal
TORCHRUN = {names.TORCHRUN_SHUTDOWN_TIMEOUT: f"{GRACE_S - 10:.0f}"}


@dataclass(frozen=True)
class RunPlan:
    """All processes of a run, and when to restart or end them."""

    run: Path
    servers: Sequence[ProcessSpec]  # all that may run, of which the first ``replicas`` start
    trainer: Sequence[ProcessSpec]  # one per node
    limits: ServerLimits
    total_steps: int | None
    startup_phase: str = "starting the trainer, first step"
    phase: str = "training"
    backoff_limit: int = 0  # restarts of a trainer that has finished a step
    active_deadline_s: float | None = None
    pre_running_deadline_s: float | None = None  # for each start of the trainer: until it and a server run
    elapsed_s: float = 0.0  # of the active deadline, before this start of the launcher
    waited_s: float = 0.0  # of the first pre-running deadline, for nodes
    replicas: int | None = None  # None: all
    stopped_by_others: bool = False  # whether a trainer that was asked to stop by someone else ends the run
    drain_s: float = 120.0  # how long a server that is no longer wanted may finish its requests


def plan_run(
    experiment: GRPOExperiment,
    *,
    run: Path,
    key_file: Path,
    threads: int,
    python: str | None = None,
    trainer_python: str | None = None,
    code: CodePaths | None = None,
) -> RunPlan:
    """The plan of a run in the directory ``run``. ``threads``: CPU threads per process on cpu.

    ``code``: what ``prepared_code`` returned.
    ``python`` and ``trainer_python`` are the interpreters of servers and trainer on the nodes (None: this one).
    """
    spec, config = experiment.spec, experiment.spec.config
    if spec.servers.nodes_per_server > 1:
        raise ValueError(
            f"servers.nodesPerServer is {spec.servers.nodes_per_server}; only Kubernetes runs a server on several "
            "nodes: set it to 1, or add --on kubernetes"
        )
    if spec.servers.pools:
        raise ValueError(
            f"servers.pools has {spec.servers.pools[0].name}; only Kubernetes runs servers with different settings: "
            "remove servers.pools, or add --on kubernetes"
        )
    if spec.servers.autoscale is not None:
        raise ValueError(
            "servers.autoscale is set; only Kubernetes changes the number of servers by itself: remove it, or add "
            "--on kubernetes"
        )
    if spec.run_policy.suspend:
        raise ValueError(
            "runPolicy.suspend is true, so the run would not start; only Kubernetes suspends: set it to false"
        )
    refuse_cluster_references("servers.env", spec.servers.env)
    refuse_cluster_references("trainer.env", spec.trainer.env)
    run = run.absolute()
    return RunPlan(
        run=run,
        servers=[
            server_spec(experiment, index, run=run, key_file=key_file, threads=threads, python=python)
            for index in range(spec.max_replicas)
        ],
        trainer=[
            trainer_spec(
                experiment,
                node,
                run=run,
                key_file=key_file,
                threads=threads,
                python=trainer_python or python,
                code=code,
            )
            for node in range(spec.trainer.nodes)
        ],
        limits=ServerLimits(
            startup_s=spec.servers.startup_seconds,
            unhealthy_s=TimeLimits.of(config.rollout, spec.servers.device).unhealthy_s,
        ),
        total_steps=config.total_train_steps,
        # Without recovery checkpoints a restarted trainer would start over and overwrite its results.
        backoff_limit=0 if config.recover.mode == "disabled" else spec.run_policy.backoff_limit,
        active_deadline_s=spec.run_policy.active_deadline_seconds,
        pre_running_deadline_s=spec.run_policy.pre_running_deadline_seconds,
        replicas=spec.servers.replicas,
        drain_s=spec.servers.termination_grace_period_seconds,
    )


def server_spec(
    experiment: GRPOExperiment, index: int, *, run: Path, key_file: Path, threads: int, python: str | None
) -> ProcessSpec:
    """Server ``index``."""
    command = server_command(
        experiment,
        index,
        host=HOST,
        port=PORT,
        config_file=names.config_file(run),
        api_key_file=key_file,
        threads=threads,
        python=python,
    )
    log = names.logs_dir(run) / f"server-{index}.log"
    return ProcessSpec("server", index, command.argv, command.env, log, gpus=gpus_per_server(experiment.spec))


def trainer_spec(
    experiment: GRPOExperiment,
    node: int,
    *,
    run: Path,
    key_file: Path,
    threads: int,
    python: str | None,
    code: CodePaths | None,
) -> ProcessSpec:
    """Node ``node`` of the trainer; the address of the rendezvous is the first node's."""
    command = trainer_command(
        experiment,
        run_dir=run,
        server_addrs=[SERVERS],
        master_addr=HOST,
        master_port=PORT,
        node_rank=node,
        api_key_file=key_file,
        threads=threads,
        python=python,
        code=code,
    )
    log = names.logs_dir(run) / ("trainer.log" if node == 0 else f"trainer-{node}.log")
    gpus = gpus_per_trainer_node(experiment.spec)
    env = {**TORCHRUN, **command.env}
    if env[names.SERVER_ADDRS] == SERVERS:  # otherwise the user has set other addresses
        env[names.SERVER_ADDRS_FILE] = str(names.server_addresses_file(run))
    return ProcessSpec("trainer", node, command.argv, env, log, gpus=gpus)


def gpus_per_server(spec: ExperimentSpec) -> int:
    """GPUs of one server."""
    return spec.servers.tensor_parallel if spec.servers.device == "cuda" else 0


def gpus_per_trainer_node(spec: ExperimentSpec) -> int:
    """GPUs of the trainer's ranks on one node."""
    return spec.trainer.processes_per_node if spec.trainer.device == "cuda" else 0


def refuse_cluster_references(key: str, env: Sequence[dict[str, Any]]) -> None:
    """Raise ``ValueError`` for a variable whose value only Kubernetes can resolve, or that no process can have."""
    for entry in env:
        if "=" in str(entry.get("name")) or "\0" in f"{entry.get('name')}{entry.get('value')}":
            raise ValueError(f"{key}: {entry.get('name')!r} has a name with = or a zero byte; correct it")
        if "value" not in entry:
            raise ValueError(
                f"{key}: {entry.get('name')} has valueFrom instead of value, which only Kubernetes can resolve; "
                "give it a value to run elsewhere"
            )
