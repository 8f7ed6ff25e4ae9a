"""`grpo eval`: the mean reward of a checkpoint on valid_dataset, or on a benchmark."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from areal_api import names
from areal_api.experiment import GRPOExperiment
from areal_api.load import with_home_expanded
from areal_api.paths import expand_home
from areal_launcher import run_files
from areal_launcher.benchmark_sets import ChosenBenchmark
from areal_launcher.bounded_files import read_tail
from areal_launcher.console import console_for
from areal_launcher.core.run import Run
from areal_launcher.display import display_for
from areal_launcher.errors import RunError
from areal_launcher.places.local.prepare import prepared_run
from areal_launcher.request import Request
from areal_launcher.results_table import checkpoints_in_cluster, last_checkpoint
from areal_launcher.run_files import experiment_file
from areal_launcher.terminal_text import printable_line

EVALUATE_MODULE = "areal_trainer.evaluate"
MAX_OUTPUT_BYTES = 8 * 2**20


def evaluate(checkpoint: str, request: Request, port: int | None, benchmark: ChosenBenchmark | None = None) -> int:
    """Print the mean reward of a checkpoint as one line of JSON. ``benchmark`` replaces the held-out problems."""
    model, directory = resolve_checkpoint(checkpoint), enclosing_run(Path(expand_home(checkpoint)))
    if request.path is None:
        if directory is None:
            raise ValueError(
                f"{checkpoint} is not inside a run directory: give a run directory or a checkpoint inside one, or name "
                "the experiment to evaluate on: an experiment.yaml, or AReaL's configuration file with --config"
            )
        request = Request(experiment_file(directory), request.script, request.overrides)
    experiment = evaluation_experiment(with_home_expanded(request.load()), model, benchmark)
    console = console_for(stderr=True)
    name = Path(model).name if benchmark is None else f"{Path(model).name}-{benchmark.name}"
    run = (directory or names.run_dir(experiment.spec.config)) / "eval" / name
    with prepared_run(experiment, run=run, first_port=port) as (plan, place):
        log = plan.trainer[0].log
        log.unlink(missing_ok=True)
        with display_for(console) as display:
            status = Run(replace(plan, startup_phase="evaluating"), place, display).run()
    lines = read_tail(log, MAX_OUTPUT_BYTES).decode(errors="replace").splitlines()
    results = [line for line in lines if line.startswith("{")]
    if status == 0 and not results:
        raise RunError("the evaluation printed no result", log=log, lines=lines[-20:])
    if results:
        print(printable_line(results[-1]))
    return status


def resolve_checkpoint(text: str) -> str:
    """The checkpoint to evaluate; for a run directory its newest checkpoint."""
    path = Path(expand_home(text))
    if not is_run(path):
        return expand_home(text)
    newest = last_checkpoint(path)
    if newest is None:
        location = checkpoints_in_cluster(run_files.read_cluster(path))
        if location is not None:
            raise ValueError(
                f"{path} has no checkpoint here, they are {location}; add --checkpoint to the grpo run command that "
                "fetched these results to fetch the newest one"
            )
        raise ValueError(f"{path} has no checkpoint yet; name one")
    return newest


def is_run(path: Path) -> bool:
    """Whether ``path`` is the directory of a local run."""
    return os.path.isfile(experiment_file(path))


def enclosing_run(path: Path) -> Path | None:
    """``path`` or its nearest parent that is a run directory."""
    return next((parent for parent in (path, *path.absolute().parents) if is_run(parent)), None)


def evaluation_experiment(
    experiment: GRPOExperiment, model: str, benchmark: ChosenBenchmark | None = None
) -> GRPOExperiment:
    """The experiment changed to evaluate ``model`` in a single process, without training."""
    spec = experiment.spec
    config = spec.config if benchmark is None else benchmark.applied(spec.config)
    if config.valid_dataset is None:
        raise ValueError(
            "valid_dataset is not set; name the held-out problems, for example valid_dataset.path=…, or --benchmark"
        )
    config = config.model_copy(
        update={
            "actor": config.actor.model_copy(update={"path": model}),
            "sglang": config.sglang.model_copy(update={"model_path": None}),
            "recover": config.recover.model_copy(update={"mode": "disabled"}),
        }
    )
    trainer = spec.trainer.model_copy(
        update={"nodes": 1, "processes_per_node": 1, "device": "cpu", "script": EVALUATE_MODULE}
    )
    storage = spec.storage.model_copy(update={"bucket": None})  # an evaluation copies nothing
    changes = {"config": config, "trainer": trainer, "storage": storage}
    return experiment.model_copy(update={"spec": spec.model_copy(update=changes)})
