"""`grpo run --on ray`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from areal_api import names
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_api.load import with_home_expanded
from areal_launcher.commands import plot_if_possible
from areal_launcher.console import console_for
from areal_launcher.core.checks import check_experiment
from areal_launcher.core.journal import Recorded
from areal_launcher.core.plan import RunPlan, plan_run
from areal_launcher.core.prepare import claimed_run
from areal_launcher.core.run import Run
from areal_launcher.display import display_for
from areal_launcher.fit import fit_in_jobs, require_fit
from areal_launcher.places.ray.agent import PYTHON
from areal_launcher.places.ray.bundles import bundles_of, server_bundle, threads_of
from areal_launcher.places.ray.connection import connect
from areal_launcher.places.ray.place import RayPlace
from areal_launcher.request import Request
from areal_launcher.results_table import results_table

MANY_CORES = 2**16  # Ray, not this machine, decides whether a node has enough


def train(request: Request, *, address: str | None, port: int | None, force: bool) -> int:
    """Train on the Ray cluster at ``address``; the exit status.

    ``port``: the first that a process tries on its node, None for any free port. ``force``: run an experiment that does
    not fit.
    """
    experiment = with_home_expanded(request.load())
    console = console_for()
    directory = names.run_dir(experiment.spec.config)

    def notify(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    check_experiment(experiment.spec, run=directory, cores=MANY_CORES)
    require_fit(fit_in_jobs(experiment.spec), force=force, notify=notify)
    with prepared_run(experiment, run=directory, address=address, port=port, notify=notify) as (plan, place):
        names.summary_file(directory).unlink(missing_ok=True)  # written by the previous start
        notify(f"run directory {directory}")
        try:
            with Recorded(display_for(console), directory) as display:
                place.notify = display.message
                status = Run(plan, place, display).run()
        finally:
            plot_if_possible(directory, console)
    console.print(results_table(directory))
    return status


@contextlib.contextmanager
def prepared_run(
    experiment: GRPOExperiment,
    *,
    run: Path,
    address: str | None,
    port: int | None,
    notify: Callable[[str], None],
) -> Iterator[tuple[RunPlan, RayPlace]]:
    """A run that is ready to start: its directory locked and written, its nodes reserved and checked."""
    spec = experiment.spec
    notify(f"connected to the Ray cluster at {connect(address)}")
    with claimed_run(experiment, run) as key_file:
        plan = plan_run(
            experiment,
            run=run,
            key_file=key_file,
            threads=threads_of(spec),
            python=PYTHON,
            trainer_python=os.environ.get(names.TRAINER_PYTHON),
        )
        wait_s = spec.run_policy.pre_running_deadline_seconds
        began = time.monotonic()
        place = RayPlace(
            bundles_of(spec),
            later=[server_bundle(spec, index) for index in range(spec.servers.replicas, spec.max_replicas)],
            run=plan.run,
            paths=local_paths(spec),
            wait_s=None if wait_s is None else float(wait_s),
            first_port=port,
            notify=notify,
        )
        try:
            yield replace(plan, waited_s=time.monotonic() - began), place
        finally:
            place.close()


def local_paths(spec: ExperimentSpec) -> list[str]:
    """The files and directories of an experiment that every node reads; hub names are left out."""
    config = spec.config
    candidates: list[str | None] = [config.actor.path, config.sglang.model_path, config.tokenizer_path]
    candidates += [config.train_dataset.path]
    candidates += [config.ref.path] if config.ref is not None else []
    candidates += [config.valid_dataset.path] if config.valid_dataset is not None else []
    candidates += [spec.trainer.script]
    return sorted({path for path in candidates if path and Path(path).exists()})
