"""The driver of a detached run: ``python -m areal_launcher.places.ray.driver RUN EXPERIMENT [--address …] [--port …]``.

It reads and removes the file EXPERIMENT, claims the run directory and writes the journal, which `grpo run` follows from
any node. Errors before that go to standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from areal_api import logs
from areal_api.experiment import GRPOExperiment
from areal_api.load import load_experiment
from areal_launcher.commands import plot_if_possible
from areal_launcher.console import console_for
from areal_launcher.core.journal import Journal, journal_size
from areal_launcher.core.prepare import claimed_run
from areal_launcher.errors import RunError
from areal_launcher.places.ray.connection import connect
from areal_launcher.places.ray.detached import write_marker
from areal_launcher.places.ray.execute import execute

USAGE_ERROR = 2


def main(run: Path, file: Path, *, address: str | None, port: int | None) -> int:
    """Execute the run; its exit status."""
    try:
        experiment = load_experiment(file)
        file.unlink()
        connected = connect(address)
        with claimed_run(experiment, run) as key_file:
            offset = journal_size(run)
            journal = Journal(run)
            write_marker(run, offset)
            journal.message(f"connected to the Ray cluster at {connected}")
            return report(journal, experiment, run=run, key_file=key_file, port=port)
    except ValueError as error:
        print(error, file=sys.stderr, flush=True)
        return USAGE_ERROR


def report(journal: Journal, experiment: GRPOExperiment, *, run: Path, key_file: Path, port: int | None) -> int:
    """Execute the run and write to the journal how it ended."""
    try:
        status = execute(experiment, run=run, key_file=key_file, port=port, display=journal)
    except RunError as error:
        failure = error
    except (ValueError, OSError) as error:
        failure = RunError(str(error), status=USAGE_ERROR)
    else:
        plot_if_possible(run, console_for(stderr=True))
        journal.end(status)
        return status
    plot_if_possible(run, console_for(stderr=True))
    journal.fail(failure)
    return failure.status


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--address")
    parser.add_argument("--port", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    logs.set_up(text_format="%(levelname)s: %(message)s")
    given = arguments()
    sys.exit(main(given.run, given.experiment, address=given.address, port=given.port))
