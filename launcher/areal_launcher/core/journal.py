"""What a run reports, as a file: for a launcher without a terminal, and for those who look at the run from elsewhere.

``launcher.jsonl`` in the run directory has one JSON object per line: ``{"start": …}``, ``{"phase": text}``,
``{"message": text}``, and at the end ``{"end": status}`` or
``{"error": text, "status": n, "log": path, "lines": […]}``. Every line also has its ``time``, and the last finished
``step`` once there is one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from areal_launcher.bounded_files import DamagedFileError, opened, parse_json, read_tail
from areal_launcher.display import Display
from areal_launcher.errors import RunError
from areal_launcher.run_files import Stats

MAX_LINE_BYTES = 2**16
MAX_READ_BYTES = 2**20
MAX_LINES_SHOWN = 40


def journal_file(run: Path) -> Path:
    """The journal of the run's launcher."""
    return run / "launcher.jsonl"


class Journal:
    """A display that writes. Use as a context; append-only, so that a reader keeps its place."""

    def __init__(self, run: Path, **start: Any) -> None:
        """``start`` is recorded first: what identifies this start of the launcher."""
        self._path = journal_file(run)
        self._phase = ""
        self._step: int | None = None
        self._write({"start": start})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def phase(self, text: str) -> None:
        """Record a new phase."""
        if text != self._phase:
            self._phase = text
            self._write({"phase": text})

    def update(self, stats: Stats, total: int | None) -> None:
        """Remember the step; readers have the statistics."""
        if stats.lines:
            self._step = stats.lines[-1]["step"]

    def message(self, text: str) -> None:
        """Record a message."""
        self._write({"message": text})

    def end(self, status: int) -> None:
        """Record the exit status of a run that was not stopped by an error."""
        self._write({"end": status})

    def fail(self, error: RunError) -> None:
        """Record the error that stopped the run."""
        log = None if error.log is None else str(error.log)
        lines = error.lines[-MAX_LINES_SHOWN:]
        self._write({"error": str(error), "status": error.status, "log": log, "lines": lines})

    def _write(self, entry: dict[str, Any]) -> None:
        at = {"time": round(time.time(), 3)} | ({} if self._step is None else {"step": self._step})
        data = json.dumps({**entry, **at}).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


class Recorded:
    """A display that also writes what it shows to the journal of the run. Use as a context.

    A journal that cannot be written does not end the run; the display says so once.
    """

    def __init__(self, display: Display, run: Path) -> None:
        self._display = display
        self._journal: Journal | None = None
        self._run = run

    def __enter__(self) -> Self:
        self._display.__enter__()
        try:
            self._journal = Journal(self._run)
        except OSError as error:
            self._give_up(error)
        return self

    def __exit__(self, *error: object) -> None:
        failure = error[1] if len(error) > 1 else None
        if isinstance(failure, RunError):
            self._record(lambda journal: journal.fail(failure))
        self._display.__exit__(*error)

    def phase(self, text: str) -> None:
        """Show and record a phase."""
        self._display.phase(text)
        self._record(lambda journal: journal.phase(text))

    def update(self, stats: Stats, total: int | None) -> None:
        """Show the latest step."""
        self._display.update(stats, total)
        self._record(lambda journal: journal.update(stats, total))

    def message(self, text: str) -> None:
        """Show and record a message."""
        self._display.message(text)
        self._record(lambda journal: journal.message(text))

    def _record(self, write: Callable[[Journal], None]) -> None:
        if self._journal is not None:
            try:
                write(self._journal)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._journal = None
        self._display.message(f"grpo ui cannot show what happens from here on: {error}")


class JournalReader:
    """Reads a growing journal from ``offset`` and repeats it on a display."""

    def __init__(self, run: Path, *, offset: int = 0) -> None:
        self._path = journal_file(run)
        self._offset = offset
        self.ended: int | RunError | None = None  # how the last start ended; None while it runs
        self.phase = ""  # the last that was reported

    def replay(self, display: Display) -> None:
        """Show what was added since the last call."""
        for entry in self._entries():
            if "start" in entry:
                self.ended = None
            elif isinstance(text := entry.get("phase"), str):
                self.phase = text
                display.phase(text)
            elif isinstance(text := entry.get("message"), str):
                display.message(text)
            elif isinstance(status := entry.get("end"), int):
                self.ended = status
            elif isinstance(text := entry.get("error"), str):
                self.ended = _error(text, entry)

    def _entries(self) -> Iterator[dict[str, Any]]:
        try:
            with opened(self._path) as file:
                data = os.pread(file.fileno(), MAX_READ_BYTES, self._offset)
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self._offset += end or (len(data) if len(data) == MAX_READ_BYTES else 0)
        yield from _parsed(data[:end].splitlines())


def read_entries(run: Path) -> list[dict[str, Any]]:
    """The entries at the end of a journal; empty if it cannot be read."""
    try:
        tail = read_tail(journal_file(run), MAX_READ_BYTES)
    except (FileNotFoundError, DamagedFileError, OSError):
        return []
    return list(_parsed(tail.splitlines()))


def journal_size(run: Path) -> int:
    """Size of the journal in bytes; a reader that starts there sees only later entries."""
    try:
        return journal_file(run).stat().st_size
    except FileNotFoundError:
        return 0


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            entry = parse_json(line) if len(line) <= MAX_LINE_BYTES else None
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _error(text: str, entry: dict[str, Any]) -> RunError:
    log, lines, status = entry.get("log"), entry.get("lines"), entry.get("status")
    return RunError(
        text,
        log=Path(log) if isinstance(log, str) else None,
        lines=[str(line) for line in lines] if isinstance(lines, list) else [],
        status=status if isinstance(status, int) else 1,
    )
