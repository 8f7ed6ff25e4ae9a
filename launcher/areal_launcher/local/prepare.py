"""From an experiment to what is started on this machine: checks, run directory, ports, devices, commands."""

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
from areal_api.load import with_home_expanded
from areal_api.render import config_yaml, experiment_yaml
from areal_launcher.local.checks import check_experiment, needed_gpus, visible_gpus
from areal_launcher.local.processes import HeldPort
from areal_launcher.local.run import GRACE_S, LocalPlan, TrainerSpec
from areal_launcher.local.servers import ServerSpec
from areal_launcher.run_files import RunLock, cluster_file, write_whole

HOST = "127.0.0.1"
TORCHRUN = {names.TORCHRUN_SHUTDOWN_TIMEOUT: f"{GRACE_S - 10:.0f}"}
EVALUATE_MODULE = "areal_trainer.evaluate"


@contextlib.contextmanager
def prepared_run(experiment: GRPOExperiment, *, run: Path, first_port: int | None) -> Iterator[LocalPlan]:
    """A run that can start: everything checked, its directory locked and written, its ports held."""
    experiment = with_home_expanded(experiment)
    spec = experiment.spec
    gpus = visible_gpus(os.environ) if sum(needed_gpus(spec)) else []
    check_experiment(spec, run=run, gpus=gpus)
    with contextlib.ExitStack() as stack:
        lock = RunLock(run)
        stack.callback(lock.release)
        cluster_file(run).unlink(missing_ok=True)  # from now on the directory is of a run here
        ports = [held_port(stack, first_port and first_port + index) for index in range(spec.servers.replicas)]
        master_port = held_port(stack, None)
        write_whole(names.config_file(run), config_yaml(spec.config))
        write_whole(experiment_file(run), experiment_yaml(experiment))
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
    """Commands of servers and trainer. The servers take their GPUs first, then the ranks; cores are shared evenly.

    ``trainer_python``: interpreter of the trainer, where it needs another environment than the servers.
    """
    spec = experiment.spec
    refuse_cluster_references("servers.env", spec.servers.env)
    refuse_cluster_references("trainer.env", spec.trainer.env)
    threads = compute_threads(spec, cores)
    of_servers, of_trainer = needed_gpus(spec)
    each = spec.servers.tensor_parallel if of_servers else 0
    servers: list[ServerSpec] = []
    for index, port in enumerate(ports):
        command = server_command(
            experiment,
            index,
            host=HOST,
            port=port,
            config_file=names.config_file(run),
            api_key_file=key_file,
            threads=threads,
            gpus=gpus[index * each : (index + 1) * each] if each else None,
        )
        log = names.logs_dir(run) / f"server-{index}.log"
        servers.append(ServerSpec(f"server-{index}", HOST, port, command.argv, environment(command), log))
    trainer = trainer_command(
        experiment,
        run_dir=run,
        server_addrs=[server.address for server in servers],
        master_port=master_port,
        api_key_file=key_file,
        threads=threads,
        gpus=gpus[of_servers : of_servers + of_trainer] if of_trainer else None,
        python=trainer_python,
    )
    config = spec.config
    return LocalPlan(
        run=run,
        servers=servers,
        trainer=TrainerSpec(trainer.argv, {**TORCHRUN, **environment(trainer)}, names.logs_dir(run) / "trainer.log"),
        setup_timeout_s=config.rollout.setup_timeout,
        total_steps=config.total_train_steps,
        # Without recovery checkpoints a restarted trainer would begin again, over its own results.
        backoff_limit=0 if config.recover.mode == "disabled" else spec.run_policy.backoff_limit,
        active_deadline_s=spec.run_policy.active_deadline_seconds,
    )


def compute_threads(spec: ExperimentSpec, cores: int) -> int:
    """Threads of each process on a CPU: servers and ranks work at the same time, or in turns when synchronous."""
    servers = spec.servers.replicas * spec.servers.tensor_parallel if spec.servers.device == "cpu" else 0
    ranks = spec.trainer.processes_per_node if spec.trainer.device == "cpu" else 0
    together = servers + ranks if spec.config.max_staleness else max(servers, ranks)
    return max(1, cores // max(1, together))


def environment(command: Command) -> dict[str, str]:
    """The launcher's environment with what the command adds."""
    return {**os.environ, **command.env}


def refuse_cluster_references(key: str, env: Sequence[dict[str, Any]]) -> None:
    """``ValueError`` for a variable whose value only a cluster knows."""
    for entry in env:
        if "value" not in entry:
            raise ValueError(
                f"{key}: {entry.get('name')} has no value but valueFrom, which only a cluster can look up; "
                "give it a value to run here"
            )


def held_port(stack: contextlib.ExitStack, number: int | None) -> int:
    """A port that is held until ``stack`` is closed."""
    port = HeldPort(HOST, number or 0)
    stack.callback(port.release)
    return port.number


def write_key(run: Path) -> Path:
    """A new API key of the run, in a file that only its user can read."""
    path = run.absolute() / "api-key"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path


def experiment_file(run: Path) -> Path:
    """The experiment that ran here."""
    return run / "experiment.yaml"


def evaluation_of(experiment: GRPOExperiment, model: str) -> GRPOExperiment:
    """The experiment with ``model`` in the place of its own, for one process that evaluates and trains nothing."""
    spec = experiment.spec
    if spec.config.valid_dataset is None:
        raise ValueError("valid_dataset is not set; name the held-out problems, as in valid_dataset.path=…")
    config = spec.config.model_copy(
        update={
            "actor": spec.config.actor.model_copy(update={"path": model}),
            "sglang": spec.config.sglang.model_copy(update={"model_path": None}),
            "recover": spec.config.recover.model_copy(update={"mode": "disabled"}),
        }
    )
    trainer = spec.trainer.model_copy(
        update={"nodes": 1, "processes_per_node": 1, "device": "cpu", "script": EVALUATE_MODULE}
    )
    return experiment.model_copy(update={"spec": spec.model_copy(update={"config": config, "trainer": trainer})})
