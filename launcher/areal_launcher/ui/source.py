"""Where the page's runs come from: directories here, or experiments of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from areal_launcher.catalog import Catalog, RunEntry
from areal_launcher.ui import view
from areal_launcher.ui.sample_files import steps_in
from areal_launcher.ui.table import ColumnTable, StatsTable

Folder = Literal["rollouts", "evaluations"]


class ShownRun(Protocol):
    """A run on the page. ``directory``: with the files that ``fetch`` has brought here; None if it brings none."""

    @property
    def identifier(self) -> str: ...
    @property
    def directory(self) -> Path | None: ...
    @property
    def table(self) -> ColumnTable: ...

    def poll(self) -> bool:
        """Read what is new; whether there is more to read at once."""
        ...

    def overview(self) -> dict[str, Any]:
        """The run without its series: the keys of ``view.overview``."""
        ...

    def configuration(self) -> str:
        """The experiment as text."""
        ...

    def load(self) -> None:
        """Read the series from the beginning, if ``poll`` does not. Takes a while; raises ``RunError`` on failure."""
        ...

    def steps(self, folder: Folder) -> list[int]:
        """The steps with a file of samples in a folder, in order. Raises like ``fetch``."""
        ...

    def fetch(self, folder: Folder, *steps: int) -> None:
        """Bring files of samples to ``directory``, if they are elsewhere. Takes a while.

        Raises ``FileNotFoundError`` or ``RunError`` if that fails.
        """
        ...


class Runs(Protocol):
    """The runs of the page. Methods are called in threads, ``find`` also on the event loop."""

    def rows(self) -> list[dict[str, Any]]:
        """A line for each run, the latest first."""
        ...

    def find(self, identifier: str) -> ShownRun | None:
        """The run with this identifier; None if there is none, or no longer."""
        ...


class LocalRun:
    """A run directory."""

    def __init__(self, entry: RunEntry, table: StatsTable) -> None:
        self.identifier = entry.identifier
        self.directory = entry.path
        self.table = table
        self._entry = entry

    def poll(self) -> bool:
        """Read the next part of stats.jsonl; whether there is more."""
        return self.table.poll()

    def overview(self) -> dict[str, Any]:
        """The run without its series."""
        return view.overview(self._entry, self.table)

    def configuration(self) -> str:
        """The text of the experiment."""
        return view.configuration(self.directory)

    def load(self) -> None:
        """Nothing to do: ``poll`` reads them."""

    def steps(self, folder: Folder) -> list[int]:
        """The steps with a file of samples."""
        return steps_in(self.directory / folder)

    def fetch(self, folder: Folder, *steps: int) -> None:
        """Nothing to do."""


class LocalRuns:
    """The runs of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._tables = view.Tables()

    def rows(self) -> list[dict[str, Any]]:
        """A line for each run, the latest first."""
        return view.rows(self._catalog)

    def find(self, identifier: str) -> LocalRun | None:
        """The run with this identifier."""
        entry = self._catalog.find(identifier)
        return None if entry is None else LocalRun(entry, self._tables.of(entry.path))
