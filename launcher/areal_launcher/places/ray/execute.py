"""Executes a run on the connected Ray cluster, for `grpo run` and for the driver of a detached run."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

from areal_api import names
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_launcher import run_files
from areal_launcher.core.bucket import check_bucket
from areal_launcher.core.code import prepared_code
from areal_launcher.core.plan import plan_run
from areal_launcher.core.run import Run
from areal_launcher.display import Display
from areal_launcher.errors import RunError
from areal_launcher.places.ray.agent import PYTHON
from areal_launcher.places.ray.bundles import bundles_of, server_bundle, threads_of
from areal_launcher.places.ray.place import RayPlace

STOPPED = 143


def execute(experiment: GRPOExperiment, *, run: Path, key_file: Path, port: int | None, display: Display) -> int:
    """Reserve and check the nodes, then run to the end; the exit status. The caller has claimed the run directory.

    Raises ``RunError`` if there is no room or the run fails, ``ValueError`` if a node cannot run the processes.
    """
    spec = experiment.spec
    check_bucket(spec)
    plan = plan_run(
        experiment,
        run=run,
        key_file=key_file,
        threads=threads_of(spec),
        python=PYTHON,
        trainer_python=os.environ.get(names.TRAINER_PYTHON),
        code=prepared_code(spec, run),
    )
    run_files.take_stop_request(run)  # of an earlier start

    def on_wait(text: str) -> None:
        display.phase(text)
        if run_files.take_stop_request(run) is not None:
            raise RunError("stopped while the run waited for room", status=STOPPED)

    started = time.monotonic()
    wait_s = spec.run_policy.pre_running_deadline_seconds
    place = RayPlace(
        bundles_of(spec),
        later=[server_bundle(spec, index) for index in range(spec.servers.replicas, spec.max_replicas)],
        run=plan.run,
        paths=local_paths(spec),
        wait_s=None if wait_s is None else float(wait_s),
        first_port=port,
        notify=display.message,
        on_wait=on_wait,
    )
    waited_s = time.monotonic() - started
    with contextlib.closing(place):
        names.summary_file(run).unlink(missing_ok=True)  # written by the previous start
        return Run(replace(plan, waited_s=waited_s), place, display).run()


def local_paths(spec: ExperimentSpec) -> list[str]:
    """The files and directories of an experiment that every node reads; hub names are left out."""
    config = spec.config
    candidates: list[str | None] = [config.actor.path, config.sglang.model_path, config.tokenizer_path]
    candidates += [config.train_dataset.path, *(one.path for one in config.train_mix)]
    candidates += [config.ref.path] if config.ref is not None else []
    candidates += [one.dataset.path for one in config.held_out]
    candidates += [spec.trainer.script]
    return sorted({path for path in candidates if path and Path(path).exists()})
