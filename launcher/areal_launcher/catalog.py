"""Finds run directories below folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from areal_api import names

MAX_DEPTH = 3  # a folder of runs, experiment, trial
MAX_FOLDERS = 20_000
MAX_RUNS = 2_000


@dataclass(frozen=True)
class RunEntry:
    """A run directory, and the name and identifier under which it is shown."""

    path: Path
    name: str  # path below its root
    identifier: str


class Catalog:
    """The runs below ``roots``, each of which is a run directory or a folder that contains some."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.absolute() for root in roots]
        self._entries: dict[str, RunEntry] = {}

    def scan(self) -> list[RunEntry]:
        """All runs, by name. Looks at ``MAX_FOLDERS`` folders and returns ``MAX_RUNS`` runs at most."""
        found: dict[str, RunEntry] = {}
        for root in self._roots:
            for path in run_directories(root):
                name = path.name if path == root else str(path.relative_to(root))
                identifier = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
                found[identifier] = RunEntry(path, name, identifier)
                if len(found) >= MAX_RUNS:
                    break
        self._entries = found
        return sorted(found.values(), key=lambda entry: entry.name)

    def find(self, identifier: str) -> RunEntry | None:
        """The run with this identifier; None if there is none, or no longer."""
        if identifier not in self._entries:
            self.scan()
        entry = self._entries.get(identifier)
        return entry if entry is not None and is_run(entry.path) else None


def default_roots() -> list[Path]:
    """``runs`` in the current folder, or the folder itself if it is a run or has no ``runs``."""
    here = Path.cwd()
    return [here / "runs"] if not is_run(here) and (here / "runs").is_dir() else [here]


def require_folders(roots: Sequence[Path]) -> None:
    """Raise ``ValueError`` for a folder that does not exist."""
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; give run directories, or folders that contain them")


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run directory."""
    return os.path.isfile(names.config_file(path)) or os.path.isfile(names.stats_file(path))


def run_directories(root: Path) -> Iterator[Path]:
    """The run directories at or below ``root``. Does not follow symbolic links below it."""
    pending = [(root, 0)]
    looked_at = 0
    while pending and looked_at < MAX_FOLDERS:
        folder, depth = pending.pop()
        looked_at += 1
        if is_run(folder):
            yield folder
        elif depth < MAX_DEPTH:
            pending += [(child, depth + 1) for child in _folders(folder)]


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as children:
            return [Path(child.path) for child in children if child.is_dir(follow_symlinks=False)]
    except OSError:
        return []
