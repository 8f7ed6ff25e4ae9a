"""`grpo run --on ray`."""

from __future__ import annotations

from areal_api import names
from areal_api.load import with_home_expanded
from areal_launcher.commands import plot_if_possible
from areal_launcher.console import console_for
from areal_launcher.core.checks import check_experiment
from areal_launcher.core.journal import Recorded
from areal_launcher.core.prepare import claimed_run
from areal_launcher.display import display_for
from areal_launcher.fit import fit_in_jobs, require_fit
from areal_launcher.places.ray.connection import connect
from areal_launcher.places.ray.detached import follow, is_detached, require_same, start_driver
from areal_launcher.places.ray.execute import execute
from areal_launcher.request import Request
from areal_launcher.results_table import results_table

MANY_CORES = 2**16  # Ray, not this machine, decides whether a node has enough


def train(request: Request, *, address: str | None, port: int | None, force: bool, detach: bool) -> int:
    """Train on the Ray cluster at ``address``, or follow the detached run of this experiment; the exit status.

    ``port``: the first that a process tries on its node, None for any free port. ``force``: run an experiment that does
    not fit. ``detach``: let the run continue without this process.
    """
    experiment = with_home_expanded(request.load())
    console = console_for()
    directory = names.run_dir(experiment.spec.config).absolute()

    def notify(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if is_detached(directory):
        require_same(experiment, directory)
        notify(f"following the detached run in {directory}")
        return 0 if detach else follow(directory, console)
    check_experiment(experiment.spec, run=directory, cores=MANY_CORES)
    require_fit(fit_in_jobs(experiment.spec), force=force, notify=notify)
    if detach:
        return start_driver(experiment, directory, address=address, port=port, console=console)
    notify(f"connected to the Ray cluster at {connect(address)}")
    with claimed_run(experiment, directory) as key_file:
        notify(f"run directory {directory}")
        try:
            with Recorded(display_for(console), directory) as display:
                status = execute(experiment, run=directory, key_file=key_file, port=port, display=display)
        finally:
            plot_if_possible(directory, console)
    console.print(results_table(directory))
    return status
