"""The options of ``--on slurm``, and what they start."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from areal_launcher.request import Request

SLURM_OPTIONS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "time": "time",
    "constraint": "constraint",
    "container_image": "containerImage",
}


def add_slurm(parser: argparse.ArgumentParser) -> None:
    """Add the options of --on slurm: short forms of keys of spec.slurm."""
    for option, key in SLURM_OPTIONS.items():
        parser.add_argument(f"--{option.replace('_', '-')}", metavar="VALUE", help=f"with --on slurm: sets slurm.{key}")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="ARG", help="with --on slurm: adds an argument of sbatch"
    )


def slurm_request(args: argparse.Namespace) -> Request:
    """The experiment with the options of --on slurm as overrides."""
    request = Request.parse(args.items, args.config)
    values = {key: getattr(args, option) for option, key in SLURM_OPTIONS.items()}
    overrides = [f"slurm.{key}={value}" for key, value in values.items() if value is not None]
    if args.sbatch:
        overrides.append(f"slurm.args={json.dumps(args.sbatch)}")
    return replace(request, overrides=[*request.overrides, *overrides])


def refuse_without_slurm(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options that apply only to Slurm."""
    for option in (*SLURM_OPTIONS, "sbatch"):
        if getattr(args, option):
            raise ValueError(f"--{option.replace('_', '-')} applies only to Slurm; add --on slurm")


def run_on_slurm(args: argparse.Namespace) -> int:
    """Train in a job of Slurm."""
    from areal_launcher.fit import fit_in_jobs, require_fit
    from areal_launcher.places.slurm.run import run

    for option in ("port", "results", "checkpoint", "namespace", "context", "kubeconfig"):
        if getattr(args, option):
            raise ValueError(f"--{option} does not apply to --on slurm; omit it")
    return run(
        slurm_request(args),
        detach=args.detach,
        check_fit=lambda spec: require_fit(fit_in_jobs(spec), force=args.force, notify=print),
    )
