"""`grpo run` on this machine."""

from __future__ import annotations

from pathlib import Path

from areal_api import names
from areal_api.experiment import ExperimentSpec
from areal_api.load import with_home_expanded
from areal_launcher.commands import plot_if_possible
from areal_launcher.console import console_for
from areal_launcher.core.journal import Recorded
from areal_launcher.core.run import Run
from areal_launcher.display import display_for
from areal_launcher.fit import fit_here, require_fit
from areal_launcher.places.local.prepare import prepared_run
from areal_launcher.request import Request
from areal_launcher.results_table import results_table
from areal_launcher.run_files import experiment_file, launcher_pid, require_run


def train(request: Request, port: int | None, *, force: bool = False) -> int:
    """Train on this machine; the exit status. ``port``: of the first server, None to choose free ports.

    ``force``: run an experiment that does not fit.
    """
    experiment = with_home_expanded(request.load())
    console = console_for()
    directory = names.run_dir(experiment.spec.config)

    def check_fit(spec: ExperimentSpec) -> None:
        require_fit(fit_here(spec), force=force, notify=lambda text: console.print(text, markup=False, soft_wrap=True))

    with prepared_run(experiment, run=directory, first_port=port, check_fit=check_fit) as (plan, place):
        names.summary_file(directory).unlink(missing_ok=True)  # written by the previous start
        console.print(f"run directory {directory}", markup=False, soft_wrap=True)
        try:
            with Recorded(display_for(console), directory) as display:
                status = Run(plan, place, display).run()
        finally:
            plot_if_possible(directory, console)
    console.print(results_table(directory))
    return status


def resume(directory: Path) -> int:
    """Continue the run in ``directory`` with the experiment that it was started with; the exit status.

    Raises ``ValueError`` if it runs, or if the experiment leads to another directory from here.
    """
    if launcher_pid(require_run(directory)) is not None:
        raise ValueError(f"{directory} is running; grpo status {directory} shows it")
    request = Request(experiment_file(directory), None, [])
    leads_to = names.run_dir(with_home_expanded(request.load()).spec.config)
    if leads_to.resolve() != directory.resolve():
        raise ValueError(
            f"the experiment of {directory} runs in {leads_to}, relative to the current folder; resume it in the "
            "folder in which it was started"
        )
    return train(request, None)
