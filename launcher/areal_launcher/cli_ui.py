"""The arguments of ``grpo ui``, ``grpo list`` and ``grpo compare``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_ui(parser: argparse.ArgumentParser, *, path: Callable[[str], Path], port: Callable[[str], int]) -> None:
    """Add the arguments of ``grpo ui``."""
    add_roots(parser, path)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    help_text = "port (default: 8265, or a free one if that is in use)"
    parser.add_argument("--port", dest="page_port", type=port, metavar="N", help=help_text)


def add_roots(parser: argparse.ArgumentParser, path: Callable[[str], Path]) -> None:
    """Add the folders in which runs are looked for."""
    help_text = "run directories, or folders that contain runs (default: runs)"
    parser.add_argument("roots", nargs="*", type=path, metavar="DIR", help=help_text)


def list_action(args: argparse.Namespace) -> int:
    """Print a table of runs."""
    from areal_launcher.catalog import default_roots
    from areal_launcher.list_runs import list_runs

    return list_runs(args.roots or default_roots())


def add_compare(parser: argparse.ArgumentParser, path: Callable[[str], Path]) -> None:
    """Add the arguments of ``grpo compare``."""
    help_text = "a file of evaluations/, or a directory of a run or of grpo eval: its newest evaluation"
    parser.add_argument("first", type=path, metavar="FIRST", help=help_text)
    parser.add_argument("second", type=path, metavar="SECOND", help="the evaluation that is compared with FIRST")
    parser.add_argument("--json", action="store_true", help="print one line of JSON with every problem that changed")
    parser.set_defaults(action=compare_action)


def compare_action(args: argparse.Namespace) -> int:
    """Compare two evaluations."""
    from areal_launcher.compare import compare

    return compare(args.first, args.second, as_json=args.json)
