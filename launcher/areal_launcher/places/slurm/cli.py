"""``grpo --on slurm``: a job of Slurm."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

from areal_api.experiment import GRPOExperiment
from areal_api.load import validated
from areal_api.slurm import SlurmSpec
from areal_launcher.place_commands import PlaceCommands, directory
from areal_launcher.request import Request

KEYS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "time": "time",
    "constraint": "constraint",
    "container_image": "containerImage",
}


class Slurm(PlaceCommands):
    """A job of Slurm. The login node sees the run directory."""

    name = "slurm"
    title = "Slurm"
    options = frozenset({*KEYS, "sbatch", "detach"})
    check_options = frozenset({"gpu"})

    def add_options(self, parser: argparse.ArgumentParser, command: str) -> None:
        """Add short forms of keys of spec.slurm."""
        if command not in ("run", "check"):
            return
        for option, key in KEYS.items():
            flag = f"--{option.replace('_', '-')}"
            parser.add_argument(flag, metavar="VALUE", help=f"with --on slurm: sets slurm.{key}")
        text = "with --on slurm: an argument of sbatch, after those of slurm.args"
        parser.add_argument("--sbatch", action="append", default=[], metavar="ARG", help=text)

    def run(self, args: argparse.Namespace) -> int:
        """Train in a job of Slurm."""
        from areal_launcher.fit import fit_in_jobs, require_fit
        from areal_launcher.places.slurm.run import run

        return run(
            request(args),
            detach=args.detach,
            check_fit=lambda spec: require_fit(fit_in_jobs(spec), force=args.force, notify=print),
        )

    def check(self, args: argparse.Namespace) -> int:
        """Show how the cluster would hold the run, and when."""
        from areal_launcher.places.slurm import inspect_run

        return inspect_run.check(request(args), gpu=args.gpu)

    def status(self, args: argparse.Namespace) -> int:
        """Show a run and its job, or the user's jobs."""
        from areal_launcher.places.slurm import inspect_run

        return inspect_run.status(None if args.run is None else directory(args), as_json=args.json)

    def stop(self, args: argparse.Namespace) -> int:
        """End the job of a run."""
        from areal_launcher.places.slurm import inspect_run

        return inspect_run.stop(directory(args), now=args.now)


@dataclass(frozen=True)
class SlurmRequest(Request):
    """An experiment with further arguments of sbatch."""

    sbatch: Sequence[str] = ()

    def load(self) -> GRPOExperiment:
        """Load and validate the experiment, and append the arguments to those of its file."""
        experiment = super().load()
        if not self.sbatch:
            return experiment
        slurm = experiment.spec.slurm
        values = slurm.model_dump(by_alias=True) | {"args": [*slurm.args, *self.sbatch]}
        changed = validated(SlurmSpec, values, source="--sbatch")
        return experiment.model_copy(update={"spec": experiment.spec.model_copy(update={"slurm": changed})})


def request(args: argparse.Namespace) -> SlurmRequest:
    """The experiment with the options of --on slurm."""
    parsed = Request.parse(args.items, args.config)
    values = {key: getattr(args, option) for option, key in KEYS.items()}
    overrides = [f"slurm.{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
    return SlurmRequest(parsed.path, parsed.script, [*parsed.overrides, *overrides], sbatch=args.sbatch)


PLACE = Slurm()
