"""``kubectl grpo``: the ``grpo`` command for experiments in Kubernetes, as a plugin of kubectl."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from areal_launcher import cli

IN_CLUSTER = ("run", "status", "logs", "stop", "suspend", "resume", "scale", "ui")


def translated(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``grpo``: with ``--on kubernetes``, ``list`` as ``status``, and kubectl's ``-n NAMESPACE``."""
    if not arguments:
        return ["--help"]
    command, *rest = arguments
    if command == "list":
        command = "status"
    if command not in IN_CLUSTER:
        return [command, *rest]
    return [command, *("--namespace" if argument == "-n" else argument for argument in rest), "--on", "kubernetes"]


def main() -> int:
    """Entry point of ``kubectl-grpo``; returns the exit status."""
    return cli.main(translated(sys.argv[1:]))
