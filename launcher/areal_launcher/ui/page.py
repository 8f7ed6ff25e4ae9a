"""What the routes of the page answer with: the runs, and the statistics of those that were looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, HTTPException, Request

from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.errors import RunError
from areal_launcher.run_files import MAX_STEP
from areal_launcher.run_state import clipped
from areal_launcher.ui.source import Runs, ShownRun

T = TypeVar("T")


async def visible_runs(request: Request) -> Runs:
    """The runs that the sender of a request may see."""
    runs: Runs = request.scope["runs"]
    return runs


VisibleRuns = Annotated[Runs, Depends(visible_runs)]


async def shown_run(identifier: str, runs: VisibleRuns) -> ShownRun:
    """The run with this identifier; the answer 404 if there is none, or none that the sender may see."""
    run = runs.find(identifier)
    if run is None:
        raise HTTPException(404, "no such run; it may have been deleted")
    return run


Run = Annotated[ShownRun, Depends(shown_run)]


@dataclass(frozen=True)
class SampledRun:
    """A run whose samples can be shown."""

    run: ShownRun
    directory: Path


async def sampled_run(run: Run) -> SampledRun:
    """The run, if its samples can be shown; else the answer 404."""
    if run.directory is None:
        raise HTTPException(404, "the files of this run are on its volume in the cluster")
    return SampledRun(run, run.directory)


Sampled = Annotated[SampledRun, Depends(sampled_run)]


class Page:
    """The state behind the page. Use from one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()  # tables are read and grown in threads, one at a time
        self._reading = asyncio.Semaphore(2)  # files of samples at a time
        self.live = 0  # open streams

    async def rows(self, runs: Runs) -> list[dict[str, Any]]:
        """A line for each run, the latest first."""
        return await asyncio.to_thread(runs.rows)

    async def poll(self, run: ShownRun) -> bool:
        """Read what is new; whether there is more to read."""
        async with self._lock:
            return await asyncio.to_thread(run.poll)

    async def load(self, run: ShownRun) -> dict[str, Any]:
        """Read the series from the beginning; the run, or the answer 404 if they cannot be read."""
        async with self._lock:
            try:
                await asyncio.to_thread(run.load)
            except RunError as error:
                raise HTTPException(404, clipped(str(error))) from error
            return await asyncio.to_thread(run.overview)

    async def overview(self, run: ShownRun) -> dict[str, Any]:
        """The run, without its series."""
        async with self._lock:
            return await asyncio.to_thread(run.overview)

    async def samples(self, what: str, read: Callable[[], T]) -> T:
        """What ``read`` finds in files of samples; the answer 404, which names ``what``, if they cannot be read."""
        async with self._reading:
            try:
                return await asyncio.to_thread(read)
            except FileNotFoundError as error:
                raise HTTPException(404, f"{what} has no samples here") from error
            except (DamagedFileError, OSError, RunError) as error:
                raise HTTPException(404, clipped(str(error))) from error

    async def series(
        self, run: ShownRun, wanted: list[str], *, first: int, last: int, limit: int, after: int
    ) -> dict[str, Any]:
        """Points of ``wanted``: those after the step ``after`` if earlier ones are not thinned, else all."""
        async with self._lock:
            table = run.table
            whole = first == 0 and last == MAX_STEP
            added = whole and after > 0 and len(table) <= limit
            points = table.points(wanted, first=after + 1 if added else first, last=last, limit=limit)
            return points.as_json() | {"replace": not added, "changes": table.changes}
