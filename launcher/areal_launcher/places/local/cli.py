"""``grpo`` without ``--on``: this machine."""

from __future__ import annotations

import argparse

from areal_launcher.place_commands import PlaceCommands, directory
from areal_launcher.request import Request


class Local(PlaceCommands):
    """This machine."""

    name = "local"
    title = "this machine"
    options = frozenset({"port"})
    check_options = frozenset({"gpu", "nodes", "json", "print_config"})

    def run(self, args: argparse.Namespace) -> int:
        """Train on this machine."""
        from areal_launcher.places.local.train import train

        return train(Request.parse(args.items, args.config), args.port, force=args.force)

    def check(self, args: argparse.Namespace) -> int:
        """Check without asking any cluster."""
        from areal_launcher.check import CheckOptions, check

        if args.json and args.print_config:
            raise ValueError("--json prints the report alone; leave out --print-config")
        options = CheckOptions(args.gpu, args.nodes, as_json=args.json, print_config=args.print_config)
        return check(Request.parse(args.items, args.config), options)

    def resume(self, args: argparse.Namespace) -> int:
        """Continue a run with the experiment that it was started with."""
        from areal_launcher.places.local.train import resume

        return resume(directory(args))

    def ui(self, args: argparse.Namespace) -> int:
        """Show run directories."""
        from areal_launcher.catalog import default_roots
        from areal_launcher.ui.serve import serve_directories

        return serve_directories(args.roots or default_roots(), host=args.host, port=args.page_port)


PLACE = Local()
