"""The arguments of ``grpo ui``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_ui(parser: argparse.ArgumentParser, *, path: Callable[[str], Path], port: Callable[[str], int]) -> None:
    """Add the arguments."""
    parser.add_argument(
        "roots",
        nargs="*",
        type=path,
        metavar="DIR",
        help="run directories, or folders that contain runs (default: runs)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=port, metavar="N", help="port (default: 8265, or a free one if that is in use)")
    parser.set_defaults(action=ui_action)


def ui_action(args: argparse.Namespace) -> int:
    """Serve the page."""
    from areal_launcher.ui.serve import default_roots, serve

    return serve(args.roots or default_roots(), host=args.host, port=args.port)
