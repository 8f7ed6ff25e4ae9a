"""The commands of ``grpo`` in each place: what ``cli.py`` in the place's folder defines, and nothing else names it."""

from __future__ import annotations

import abc
import argparse
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from areal_api.paths import expand_home
from areal_launcher.run_directory import RunDirectory

FOLDER = "areal_launcher.places"
KUBERNETES = "areal_launcher.cluster"  # where the operator executes runs


class PlaceCommands(abc.ABC):
    """The commands of a place. Those that work on a run directory need no code of the place."""

    name: ClassVar[str]  # of --on
    title: ClassVar[str]  # in messages
    options: ClassVar[frozenset[str]]  # those of any command that not all places take, as attributes of the arguments
    check_options: ClassVar[frozenset[str]] = frozenset()  # the same, of grpo check alone

    def add_options(self, parser: argparse.ArgumentParser, command: str) -> None:
        """Add the options of a command that only this place takes."""
        return

    @abc.abstractmethod
    def run(self, args: argparse.Namespace) -> int:
        """Train."""

    def check(self, args: argparse.Namespace) -> int:
        """Check whether an experiment fits."""
        raise ValueError(f"grpo check does not ask {self.title}; leave out --on {self.name}")

    def status(self, args: argparse.Namespace) -> int:
        """Show the state of a run, or without ``args.run`` those of the place."""
        if args.run is None:
            raise ValueError(
                "no run: give a run directory, --on kubernetes for the experiments of a cluster, or --on slurm for "
                "your jobs"
            )
        from areal_launcher.core.status import status

        return status(directory(args), as_json=args.json)

    def logs(self, args: argparse.Namespace) -> int:
        """Print the logs of a run."""
        from areal_launcher.core.logs import logs

        return logs(
            directory(args), component=args.component, process=args.process, lines=args.lines, follow=args.follow
        )

    def stop(self, args: argparse.Namespace) -> int:
        """End a run; ``args.now``: without a recovery checkpoint."""
        RunDirectory(directory(args)).stop(now=args.now)
        print(f"asked the run to {'end at once' if args.now else 'write a recovery checkpoint and end'}")
        return 0

    def resume(self, args: argparse.Namespace) -> int:
        """Continue a suspended run."""
        raise ValueError(f"--on {self.name}: grpo run with the same experiment continues a run; leave out resume")

    def scale(self, args: argparse.Namespace) -> int:
        """Change the number of servers."""
        run = directory(args)
        RunDirectory(run).scale(args.servers)
        print(f"asked for {args.servers} servers; grpo status {run} shows them")
        return 0

    def ui(self, args: argparse.Namespace) -> int:
        """Serve the page of runs."""
        raise ValueError(f"grpo ui reads run directories, also those of {self.title}; leave out --on {self.name}")


@functools.cache
def places() -> Mapping[str, PlaceCommands]:
    """The places by name: every folder of ``places/``, and Kubernetes. This machine comes first."""
    package = importlib.import_module(FOLDER)
    folders = [f"{FOLDER}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    found: list[PlaceCommands] = [importlib.import_module(f"{folder}.cli").PLACE for folder in [*folders, KUBERNETES]]
    return {place.name: place for place in sorted(found, key=lambda place: (place.name != "local", place.name))}


def refuse_other_options(args: argparse.Namespace, place: PlaceCommands, *, check: bool = False) -> None:
    """Raise ``ValueError`` for an option that other places take but not this one. ``check``: of grpo check alone."""

    def taken(by: PlaceCommands) -> frozenset[str]:
        return by.check_options if check else by.options

    everywhere = sorted({option for one in places().values() for option in taken(one)})
    for option in everywhere:
        if option in taken(place) or not getattr(args, option, None):
            continue
        flag = f"--{option.replace('_', '-')}"
        takers = [one for one in places().values() if option in taken(one)]
        if place.name != "local":
            raise ValueError(f"{flag} does not apply to --on {place.name}; omit it")
        what = takers[0].title if len(takers) == 1 else "a cluster"
        raise ValueError(f"{flag} applies only to {what}; add --on {listed([one.name for one in takers])}")


def directory(args: argparse.Namespace) -> Path:
    """The run directory of a command; the shell leaves ``~`` in ``--option=~/x`` to the program."""
    return Path(expand_home(args.run))


def listed(names: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
