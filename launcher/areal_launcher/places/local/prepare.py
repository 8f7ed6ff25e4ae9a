"""Prepares a run on this machine: checks, run directory, ports and devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from areal_api import names
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_launcher.core.bucket import check_bucket
from areal_launcher.core.checks import check_experiment
from areal_launcher.core.code import prepared_code
from areal_launcher.core.environment import check_environment
from areal_launcher.core.plan import RunPlan, plan_run
from areal_launcher.core.prepare import claimed_run
from areal_launcher.gpu_machine import visible_gpus
from areal_launcher.places.local.gpus import check_gpus, required_gpus
from areal_launcher.places.local.place import LocalPlace

MAX_PORT = 2**16 - 1


@contextlib.contextmanager
def prepared_run(
    experiment: GRPOExperiment,
    *,
    run: Path,
    first_port: int | None,
    check_fit: Callable[[ExperimentSpec], None] | None = None,
) -> Iterator[tuple[RunPlan, LocalPlace]]:
    """A run that is ready to start: checked, its directory locked and written, its ports reserved.

    ``check_fit`` comes after the checks of this machine and raises ``ValueError`` if the experiment does not fit.
    """
    spec = experiment.spec
    check_environment()
    gpus = visible_gpus(os.environ) if sum(required_gpus(spec)) else []
    if spec.trainer.nodes > 1:
        raise ValueError(f"trainer.nodes is {spec.trainer.nodes}; a local run has one node; set trainer.nodes=1")
    check_gpus(spec, gpus)
    cores = len(os.sched_getaffinity(0))
    check_experiment(spec, run=run, cores=cores)
    if check_fit is not None:
        check_fit(spec)
    check_ports(first_port, spec.max_replicas)
    with claimed_run(experiment, run) as key_file:
        check_bucket(spec)
        plan = plan_run(
            experiment,
            run=run,
            key_file=key_file,
            threads=compute_threads(spec, cores),
            trainer_python=os.environ.get(names.TRAINER_PYTHON),
            code=prepared_code(spec, run),
        )
        place = LocalPlace(gpus=gpus, first_port=first_port, servers=spec.max_replicas)
        try:
            yield plan, place
        finally:
            place.close()


def compute_threads(spec: ExperimentSpec, cores: int) -> int:
    """CPU threads per process: servers and ranks run concurrently, or in turns if training is synchronous."""
    servers = spec.servers.replicas * spec.servers.tensor_parallel if spec.servers.device == "cpu" else 0
    ranks = spec.trainer.processes_per_node if spec.trainer.device == "cpu" else 0
    concurrent = servers + ranks if spec.config.max_staleness else max(servers, ranks)
    return max(1, cores // max(1, concurrent))


def check_ports(first_port: int | None, count: int) -> None:
    """Raise ``ValueError`` if ``count`` ports from ``first_port`` exceed the largest port."""
    if first_port is not None and first_port + count - 1 > MAX_PORT:
        raise ValueError(
            f"--port {first_port} with {count} servers needs ports up to {first_port + count - 1}, more "
            f"than {MAX_PORT}; choose at most {MAX_PORT - count + 1}"
        )
