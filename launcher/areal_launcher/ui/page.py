"""The state behind the page: which runs there are, and the statistics of those that were looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException

from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.catalog import Catalog, RunEntry
from areal_launcher.run_files import MAX_STEP
from areal_launcher.run_state import clipped
from areal_launcher.ui import view


class Page:
    """What the routes answer with. Use from one event loop."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._tables = view.Tables()
        self._lock = asyncio.Lock()  # tables are read and grown in threads, one at a time
        self._reading = asyncio.Semaphore(2)  # files of samples at a time
        self.live = 0  # open streams

    async def runs(self) -> list[dict[str, Any]]:
        """A line for each run, the latest first."""
        return await asyncio.to_thread(lambda: view.rows(self._catalog))

    def find(self, identifier: str) -> RunEntry:
        """The run with this identifier; the answer 404 if there is none."""
        entry = self._catalog.find(identifier)
        if entry is None:
            raise HTTPException(404, "no such run; it may have been deleted")
        return entry

    async def poll(self, entry: RunEntry) -> tuple[bool, tuple[int, int]]:
        """Read the next part of the statistics: whether there is more, and a stamp that changes with the table."""
        async with self._lock:
            table = self._tables.of(entry.path)
            more = await asyncio.to_thread(table.poll)
            return more, (len(table), table.changes)

    async def overview(self, entry: RunEntry) -> dict[str, Any]:
        """The run, without its series."""
        async with self._lock:
            return await asyncio.to_thread(view.overview, entry, self._tables.of(entry.path))

    async def samples(self, what: str, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``read`` finds in files of samples; the answer 404, which names ``what``, if they cannot be read."""
        async with self._reading:
            try:
                return await asyncio.to_thread(read)
            except FileNotFoundError as error:
                raise HTTPException(404, f"{what} has no samples here") from error
            except (DamagedFileError, OSError) as error:
                raise HTTPException(404, clipped(str(error))) from error

    async def series(
        self, entry: RunEntry, wanted: list[str], *, first: int, last: int, limit: int, after: int
    ) -> dict[str, Any]:
        """Points of ``wanted``: those after the step ``after`` if earlier ones are not thinned, else all."""
        async with self._lock:
            table = self._tables.of(entry.path)
            whole = first == 0 and last == MAX_STEP
            added = whole and after > 0 and len(table) <= limit
            points = table.points(wanted, first=after + 1 if added else first, last=last, limit=limit)
            return points.as_json() | {"replace": not added, "changes": table.changes}
