"""The commands that do not depend on where a run executes: convert, plot, crd.

They raise ``ValueError`` for user errors.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from areal_api.render import experiment_yaml
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.plot import plot_run
from areal_launcher.request import Request


def convert(request: Request, output: Path | None) -> int:
    """Write AReaL's configuration file as an experiment.yaml."""
    text = experiment_yaml(request.load())
    if output is None:
        sys.stdout.write(text)
    else:
        write_output(output, text)
    return 0


def write_output(path: Path, text: str) -> None:
    """Write a file atomically; a device or FIFO such as /dev/stdout is written to directly."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
    else:
        run_files.write_atomic(path.resolve(), text)


def plot(directory: Path) -> int:
    """Draw reward.png."""
    print(plot_run(run_files.require_run(directory)))
    return 0


def plot_if_possible(directory: Path, console: Console) -> None:
    """Draw reward.png if the run has finished a step. A full disk must not hide how the run ended."""
    try:
        if run_files.read_stats(directory).lines:
            plot_run(directory)
    except (OSError, DamagedFileError) as error:
        console.print(f"reward.png was not drawn: {error}", markup=False, soft_wrap=True)


def crd() -> int:
    """Print the custom resource definition."""
    from areal_api.generate.crd import crd_yaml

    sys.stdout.write(crd_yaml())
    return 0


def key_help() -> str:
    """All configuration keys with default, unit and description."""
    from areal_api.generate.docs import describe_keys

    return describe_keys()
