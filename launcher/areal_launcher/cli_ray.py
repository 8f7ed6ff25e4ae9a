"""The options of ``--on ray``, and what they start."""

from __future__ import annotations

import argparse

from areal_launcher.request import Request

CANNOT_APPLY = ("results", "checkpoint", "namespace", "context", "kubeconfig")


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Add the option of --on ray."""
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="with --on ray: the cluster (default: $RAY_ADDRESS, else the one on this machine)",
    )


def refuse_without_ray(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for the option that applies only to Ray."""
    if getattr(args, "address", None):
        raise ValueError("--address applies only to Ray; add --on ray")


def run_on_ray(args: argparse.Namespace) -> int:
    """Train on a Ray cluster."""
    refuse_other_options(args)
    try:
        from areal_launcher.places.ray.train import train
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    request = Request.parse(args.items, args.config)
    return train(request, address=args.address, port=args.port, force=args.force, detach=args.detach)


def check_on_ray(args: argparse.Namespace) -> int:
    """Check whether a Ray cluster can hold an experiment."""
    refuse_other_options(args)
    try:
        from areal_launcher.places.ray.check import check
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    return check(Request.parse(args.items, args.config), address=args.address)


def missing_package(error: ModuleNotFoundError) -> ValueError:
    """What to install."""
    return ValueError(f"--on ray requires {error.name}: pip install 'areal-k8s[ray]' (here: make ray)")


def refuse_other_options(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for options that mean nothing on Ray."""
    for option in CANNOT_APPLY:
        if getattr(args, option, None):
            raise ValueError(f"--{option} does not apply to --on ray; omit it")
