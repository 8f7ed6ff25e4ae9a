"""``grpo --on kubernetes``: an experiment that the operator executes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from areal_api.paths import expand_home
from areal_launcher.place_commands import PlaceCommands
from areal_launcher.request import Request

if TYPE_CHECKING:
    from areal_launcher.cluster.client import ClusterTarget
    from areal_launcher.cluster.control import ClusterRun

SELECTION = ("namespace", "context", "kubeconfig")


class Kubernetes(PlaceCommands):
    """Experiments of a Kubernetes cluster, selected by name."""

    name = "kubernetes"
    title = "Kubernetes"
    options = frozenset({*SELECTION, "detach", "results", "checkpoint"})

    def add_options(self, parser: argparse.ArgumentParser, command: str) -> None:
        """Add the selection of a cluster, and what to fetch."""
        if command == "check":
            return
        parser.add_argument("--namespace", metavar="NAME", help="namespace in the cluster (default: the context's)")
        parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig (default: the current one)")
        parser.add_argument(
            "--kubeconfig", type=expand_home, metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config"
        )
        if command == "run":
            parser.add_argument(
                "--results",
                type=lambda text: Path(expand_home(text)),
                metavar="DIR",
                help="where to put results (default: the run directory)",
            )
            parser.add_argument(
                "--checkpoint", action="store_true", help="also fetch the newest checkpoint from the cluster"
            )

    def run(self, args: argparse.Namespace) -> int:
        """Apply the experiment and follow it."""
        target = cluster_target(args)
        from areal_launcher.cluster.run import run

        if args.detach and args.checkpoint:
            raise ValueError("--checkpoint fetches when the run ends, but --detach does not wait for it; omit one")
        return run(
            Request.parse(args.items, args.config),
            target,
            detach=args.detach,
            results=args.results,
            checkpoint=args.checkpoint,
            force=args.force,
        )

    def status(self, args: argparse.Namespace) -> int:
        """Show an experiment, or all of them."""
        target = cluster_target(args)
        from areal_launcher.cluster.status import status

        return status(args.run, target, as_json=args.json)

    def logs(self, args: argparse.Namespace) -> int:
        """Print the logs of pods."""
        target = cluster_target(args)
        from areal_launcher.cluster.logs import logs

        options = {"component": args.component, "process": args.process, "lines": args.lines, "follow": args.follow}
        return logs(args.run, target, **options)

    def stop(self, args: argparse.Namespace) -> int:
        """Suspend an experiment."""
        experiment(args).stop(now=args.now)
        print(
            f"asked {args.run} to write a recovery checkpoint and end; grpo resume {args.run} --on kubernetes, or grpo "
            "run with the same experiment, continues it"
        )
        return 0

    def resume(self, args: argparse.Namespace) -> int:
        """Continue a suspended experiment."""
        experiment(args).resume()
        print(f"{args.run} continues; grpo status {args.run} --on kubernetes shows it")
        return 0

    def scale(self, args: argparse.Namespace) -> int:
        """Change the number of servers."""
        experiment(args).scale(args.servers)
        print(f"asked for {args.servers} servers; grpo status {args.run} --on kubernetes shows them")
        return 0

    def ui(self, args: argparse.Namespace) -> int:
        """Show the experiments of a cluster."""
        if args.roots:
            raise ValueError(f"{args.roots[0]} is a directory, and --on kubernetes shows experiments; leave out one")
        target = cluster_target(args)
        from areal_launcher.cluster.page import ClusterRuns
        from areal_launcher.ui.serve import serve

        return serve(lambda: ClusterRuns.connect(target), host=args.host, port=args.page_port)


def experiment(args: argparse.Namespace) -> ClusterRun:
    """The selected experiment."""
    target = cluster_target(args)
    from areal_launcher.cluster.control import ClusterRun

    return ClusterRun(args.run, target)


def cluster_target(args: argparse.Namespace) -> ClusterTarget:
    """The selected cluster."""
    try:
        from areal_launcher.cluster.client import ClusterTarget
    except ModuleNotFoundError as error:
        raise ValueError(f"--on kubernetes requires {error.name}: pip install 'areal-k8s[kubernetes]'") from error
    return ClusterTarget(args.kubeconfig, args.context, args.namespace)


PLACE = Kubernetes()
