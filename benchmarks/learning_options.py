"""Options of the benchmark ``learning``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scripted import REPOSITORY

STEPS = 25
MODES = ("sync", "eta1", "eta2", "eta4")
SETTINGS = ("defaults", "areal")  # what the correction of stale samples is: ours, or AReaL's
TASKS = ("tiny", "rows")
PEERS = ("trl", "areal")
FOLDER = REPOSITORY / ".bin" / "learning"


@dataclass(frozen=True)
class Options:
    """What to run."""

    seeds: int = 10
    tasks: Sequence[str] = TASKS
    modes: Sequence[str] = MODES
    settings: Sequence[str] = SETTINGS
    peers: Sequence[str] = ()
    folder: Path = FOLDER
    steps: int = STEPS
