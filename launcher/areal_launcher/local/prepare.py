"""Prepares a local run: checks, run directory, ports, devices and commands."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from areal_api import names
from areal_api.commands import Command, server_command, trainer_command
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_api.render import config_yaml, experiment_yaml
from areal_launcher.local.checks import check_experiment, required_gpus, visible_gpus
from areal_launcher.local.environment import check_environment, child_environment
from areal_launcher.local.processes import ReservedPort
from areal_launcher.local.resume import check_resume
from areal_launcher.local.run import GRACE_S, LocalPlan, TrainerProcess
from areal_launcher.local.servers import ServerProcess
from areal_launcher.run_files import RunLock, cluster_file, experiment_file, write_atomic

HOST = "127.0.0.1"
MAX_PORT = 2**16 - 1
TORCHRUN = {names.TORCHRUN_SHUTDOWN_TIMEOUT: f"{GRACE_S - 10:.0f}"}


@contextlib.contextmanager
def prepared_run(experiment: GRPOExperiment, *, run: Path, first_port: int | None) -> Iterator[LocalPlan]:
    """A run that is ready to start: checked, its directory locked and written, its ports reserved."""
    spec = experiment.spec
    check_environment()
    gpus = visible_gpus(os.environ) if sum(required_gpus(spec)) else []
    check_experiment(spec, run=run, gpus=gpus)
    with contextlib.ExitStack() as stack:
        lock = RunLock(run)
        stack.callback(lock.release)
        check_resume(spec.config, run)
        cluster_file(run).unlink(missing_ok=True)  # the directory now belongs to a local run
        check_ports(first_port, spec.servers.replicas)
        ports = [reserve_port(stack, first_port and first_port + index) for index in range(spec.servers.replicas)]
        master_port = reserve_port(stack, None)
        write_atomic(names.config_file(run), config_yaml(spec.config))
        write_atomic(experiment_file(run), experiment_yaml(experiment))
        key_file = write_key(run)
        stack.callback(key_file.unlink, missing_ok=True)
        yield plan_run(
            experiment,
            run=run.absolute(),
            ports=ports,
            master_port=master_port,
            gpus=gpus,
            cores=len(os.sched_getaffinity(0)),
            key_file=key_file,
            trainer_python=os.environ.get(names.TRAINER_PYTHON),
        )


def plan_run(
    experiment: GRPOExperiment,
    *,
    run: Path,
    ports: Sequence[int],
    master_port: int,
    gpus: Sequence[str],
    cores: int,
    key_file: Path,
    trainer_python: str | None = None,
) -> LocalPlan:
    """Commands of servers and trainer. GPUs go to the servers first, then to the ranks; cores are shared evenly.

    ``trainer_python``: interpreter of the trainer, if it needs a different environment from the servers.
    """
    spec = experiment.spec
    refuse_cluster_references("servers.env", spec.servers.env)
    refuse_cluster_references("trainer.env", spec.trainer.env)
    threads = compute_threads(spec, cores)
    server_gpus, trainer_gpus = required_gpus(spec)
    gpus_each = spec.servers.tensor_parallel if server_gpus else 0
    servers: list[ServerProcess] = []
    for index, port in enumerate(ports):
        command = server_command(
            experiment,
            index,
            host=HOST,
            port=port,
            config_file=names.config_file(run),
            api_key_file=key_file,
            threads=threads,
            gpus=gpus[index * gpus_each : (index + 1) * gpus_each] if gpus_each else None,
        )
        log = names.logs_dir(run) / f"server-{index}.log"
        servers.append(ServerProcess(f"server-{index}", HOST, port, command.argv, environment(command), log))
    trainer = trainer_command(
        experiment,
        run_dir=run,
        server_addrs=[server.address for server in servers],
        master_port=master_port,
        api_key_file=key_file,
        threads=threads,
        gpus=gpus[server_gpus : server_gpus + trainer_gpus] if trainer_gpus else None,
        python=trainer_python,
    )
    config = spec.config
    return LocalPlan(
        run=run,
        servers=servers,
        trainer=TrainerProcess(trainer.argv, {**TORCHRUN, **environment(trainer)}, names.logs_dir(run) / "trainer.log"),
        setup_timeout_s=config.rollout.setup_timeout,
        total_steps=config.total_train_steps,
        # Without recovery checkpoints a restarted trainer would start over and overwrite its results.
        backoff_limit=0 if config.recover.mode == "disabled" else spec.run_policy.backoff_limit,
        active_deadline_s=spec.run_policy.active_deadline_seconds,
    )


def compute_threads(spec: ExperimentSpec, cores: int) -> int:
    """CPU threads per process: servers and ranks run concurrently, or in turns if training is synchronous."""
    servers = spec.servers.replicas * spec.servers.tensor_parallel if spec.servers.device == "cpu" else 0
    ranks = spec.trainer.processes_per_node if spec.trainer.device == "cpu" else 0
    concurrent = servers + ranks if spec.config.max_staleness else max(servers, ranks)
    return max(1, cores // max(1, concurrent))


def environment(command: Command) -> dict[str, str]:
    """The launcher's environment plus the command's variables."""
    return child_environment(os.environ, command.env)


def refuse_cluster_references(key: str, env: Sequence[dict[str, Any]]) -> None:
    """Raise ``ValueError`` for a variable whose value only a cluster can resolve, or that no process can have."""
    for entry in env:
        if "=" in str(entry.get("name")) or "\0" in f"{entry.get('name')}{entry.get('value')}":
            raise ValueError(f"{key}: {entry.get('name')!r} has a name with = or a zero byte; correct it")
        if "value" not in entry:
            raise ValueError(
                f"{key}: {entry.get('name')} has valueFrom instead of value, which only a cluster can resolve; "
                "give it a value to run on this machine"
            )


def check_ports(first_port: int | None, count: int) -> None:
    """Raise ``ValueError`` if ``count`` ports from ``first_port`` exceed the largest port."""
    if first_port is not None and first_port + count - 1 > MAX_PORT:
        raise ValueError(
            f"--port {first_port} with servers.replicas = {count} needs ports up to {first_port + count - 1}, more "
            f"than {MAX_PORT}; choose at most {MAX_PORT - count + 1}"
        )


def reserve_port(stack: contextlib.ExitStack, number: int | None) -> int:
    """Reserve a port until ``stack`` is closed; ``number`` None for any free one."""
    port = ReservedPort(HOST, number or 0)
    stack.callback(port.release)
    return port.number


def write_key(run: Path) -> Path:
    """Write a new API key of the run to a file that only its owner can read."""
    path = run.absolute() / "api-key"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path
