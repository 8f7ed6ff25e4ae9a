"""Prepares a run on this machine: checks, run directory, ports and devices."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from areal_api import names
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_launcher.core.checks import check_attention, check_experiment
from areal_launcher.core.environment import check_environment
from areal_launcher.core.plan import RunPlan, plan_run
from areal_launcher.core.prepare import claimed_run
from areal_launcher.places.local.gpus import check_gpus, required_gpus, visible_gpus
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
    check_attention(spec, os.environ.get(names.TRAINER_PYTHON) or sys.executable)
    if check_fit is not None:
        check_fit(spec)
    check_ports(first_port, spec.max_replicas)
