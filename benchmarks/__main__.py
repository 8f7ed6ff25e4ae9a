"""``python -m benchmarks [NAME ...]``: run the named benchmarks, by default all but those of ``NAMED``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning_options import FOLDER, MODES, PEERS, SETTINGS, TASKS, Options
from benchmarks.measure import machine

NAMES = ("rollout", "rewards", "trainer", "weights", "memory", "executor", "freshness", "peers", "learning")
NAMES += ("gateway", "affinity", "reconcile", "faults", "page", "dump", "elastic", "ingestion")
NAMED = ("cluster", "places", "operators")  # run only by name: need `make cluster`, Slurm, and builds of the peers


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks and print their comparisons; the exit status is 0 for any result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = ", ".join(NAMES + NAMED)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks to run: {known}; default all but the last three"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds per side (default 5)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: checks that it runs, measures nothing")
    text = "peers, learning: also train with these, installed into environments of their own in .bin"
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=[], help=text)
    of_learning = parser.add_argument_group("learning")
    of_learning.add_argument("--seeds", type=int, default=10, help="runs of each combination (default 10)")
    for name, known_values in (("tasks", TASKS), ("modes", MODES), ("settings", SETTINGS)):
        text = f"of {', '.join(known_values)}; default all"
        of_learning.add_argument(f"--{name}", nargs="+", choices=known_values, default=known_values, help=text)
    of_learning.add_argument("--folder", type=Path, default=FOLDER, help=f"results (default {FOLDER.name} in .bin)")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; give at least 1")
    for name in options.names:
        if name not in NAMES + NAMED:
            parser.error(f"{name!r} is not a benchmark; choose from {known}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported by a benchmark
    print(machine(), flush=True)
    for name in options.names or NAMES:
        more: dict[str, Any] = {"peers": options.peers} if name == "peers" else {}
        if name == "learning":
            chosen = (options.seeds, options.tasks, options.modes, options.settings, options.peers)
            more = {"options": Options(*chosen, options.folder.absolute())}
        module = importlib.import_module(f"benchmarks.{name}")
        for comparison in module.run(small=options.small, rounds=options.rounds, **more):
            print(comparison.report(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
