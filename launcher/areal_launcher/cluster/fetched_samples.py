"""Files that the page has fetched from volumes: samples, in a temporary directory of bounded size, and statistics."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from areal_api import names
from areal_api.rollout_columns import file_name
from areal_launcher.cluster.client import Cluster, Object
from areal_launcher.cluster.fetch_results import extract_files, read_archive, source_of
from areal_launcher.cluster.fetch_samples import fetch_steps, sizes_of
from areal_launcher.run_files import Line, parse_line

MAX_BYTES = 2**30  # of the files of all runs; the ones that were fetched first are deleted
LISTED_S = 60.0  # how long the list of a folder is used


@dataclass
class _Listed:
    sizes: dict[int, int]
    at: float = field(default_factory=time.monotonic)


class FetchedSamples:
    """Fetches each file once. Methods are called in threads. The directory is deleted with the object."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._folder = tempfile.TemporaryDirectory(prefix="grpo-ui-")
        self._lock = threading.Lock()  # one pod at a time
        self._listed: dict[tuple[str, str], _Listed] = {}  # by run and folder
        self._sizes: OrderedDict[Path, int] = OrderedDict()

    def directory(self, identifier: str) -> Path:
        """The directory of a run."""
        return Path(self._folder.name) / identifier

    def steps(self, identifier: str, body: Object, folder: str) -> list[int]:
        """The steps with a file on the run's volume. Raises ``RunError`` if it cannot be read."""
        with self._lock:
            return list(self._list(identifier, body, folder))

    def fetch(self, identifier: str, body: Object, folder: str, steps: Sequence[int]) -> None:
        """Fetch the files of ``steps`` that are not here. Raises ``FileNotFoundError`` and ``RunError``."""
        target = self.directory(identifier) / folder
        with self._lock:
            missing = [step for step in steps if target / file_name(step) not in self._sizes]
            if not missing:
                return
            sizes = self._list(identifier, body, folder)
            source = source_of(self._cluster, body)
            fetch_steps(self._cluster, source, folder, missing, target, sizes=sizes)
            self._sizes.update({target / file_name(step): sizes[step] for step in missing})
            while sum(self._sizes.values()) > MAX_BYTES and len(self._sizes) > len(missing):
                oldest, _ = self._sizes.popitem(last=False)
                oldest.unlink(missing_ok=True)

    def statistics(self, body: Object) -> list[Line]:
        """The lines of a run's stats.jsonl, in their order. Raises ``RunError`` if it cannot be read."""
        name = names.stats_file(Path()).name
        with self._lock:
            source = source_of(self._cluster, body)
            text = extract_files(read_archive(self._cluster, source, [name]), [name]).get(name, b"")
        return [line for line in map(parse_line, text.splitlines()) if line is not None]

    def _list(self, identifier: str, body: Object, folder: str) -> dict[int, int]:
        known = self._listed.get((identifier, folder))
        if known is None or time.monotonic() - known.at > LISTED_S:
            known = _Listed(sizes_of(self._cluster, source_of(self._cluster, body), folder))
            self._listed[identifier, folder] = known
        return known.sizes
