"""``grpo --on ray``: a Ray cluster."""

from __future__ import annotations

import argparse

from areal_launcher.place_commands import PlaceCommands
from areal_launcher.request import Request


class Ray(PlaceCommands):
    """A Ray cluster. Every node sees the run directory."""

    name = "ray"
    title = "Ray"
    options = frozenset({"address", "detach", "port"})
    check_options = frozenset({"gpu"})

    def add_options(self, parser: argparse.ArgumentParser, command: str) -> None:
        """Add --address."""
        if command in ("run", "check"):
            parser.add_argument(
                "--address",
                metavar="HOST:PORT",
                help="with --on ray: the cluster (default: $RAY_ADDRESS, else the one on this machine)",
            )

    def run(self, args: argparse.Namespace) -> int:
        """Train on a Ray cluster."""
        try:
            from areal_launcher.places.ray.train import train
        except ModuleNotFoundError as error:
            raise missing_package(error) from error
        request = Request.parse(args.items, args.config)
        return train(request, address=args.address, port=args.port, force=args.force, detach=args.detach)

    def check(self, args: argparse.Namespace) -> int:
        """Check whether a Ray cluster can hold an experiment."""
        try:
            from areal_launcher.places.ray.check import check
        except ModuleNotFoundError as error:
            raise missing_package(error) from error
        return check(Request.parse(args.items, args.config), address=args.address, gpu=args.gpu)


def missing_package(error: ModuleNotFoundError) -> ValueError:
    """What to install."""
    return ValueError(f"--on ray requires {error.name}: pip install 'areal-k8s[ray]' (here: make ray)")


PLACE = Ray()
