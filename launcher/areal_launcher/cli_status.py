"""What ``grpo status`` shows in each place."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from areal_api.paths import expand_home

if TYPE_CHECKING:
    from areal_launcher.cluster.client import ClusterTarget


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add the option of ``grpo status``."""
    parser.add_argument(
        "--json", action="store_true", help="print the state of RUN as JSON, with the same keys everywhere"
    )


def show_status(args: argparse.Namespace, target: ClusterTarget | None) -> int:
    """Show a run directory, or experiments in a cluster."""
    if args.json and args.run is None:
        raise ValueError("--json prints the state of one run: give RUN")
    if target is not None:
        from areal_launcher.cluster import status as cluster_status

        return cluster_status.status(args.run, target, as_json=args.json)
    directory = None if args.run is None else Path(expand_home(args.run))
    if args.on == "slurm":
        from areal_launcher.places.slurm import inspect_run

        return inspect_run.status(directory, as_json=args.json)
    if directory is None:
        raise ValueError(
            "no run: give a run directory, --on kubernetes for the experiments of a cluster, or --on slurm for "
            "your jobs"
        )
    from areal_launcher.core.status import status

    return status(directory, as_json=args.json)
