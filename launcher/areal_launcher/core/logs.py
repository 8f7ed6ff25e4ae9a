"""`grpo logs` of a run directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

from areal_api import names
from areal_launcher.bounded_files import opened
from areal_launcher.terminal_text import printable_line

FOLLOW_S = 0.2
MAX_READ_BYTES = 8 * 2**20  # per log and poll; of a longer log only the end is searched for the last lines


class LogReader:
    """The complete lines of one log, read piece by piece. A log that was truncated is read again from the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: int | None = None  # None before the first read

    def last_lines(self, count: int) -> list[str]:
        """The last ``count`` complete lines; ``new_lines`` continues after them."""
        self._offset = 0
        lines = self._read(from_end=True)
        return lines[len(lines) - min(count, len(lines)) :]

    def new_lines(self) -> list[str]:
        """Complete lines added since the last read."""
        return self._read(from_end=False)

    def _read(self, *, from_end: bool) -> list[str]:
        try:
            with opened(self._path) as file:
                size = os.fstat(file.fileno()).st_size
                start = self._offset or 0
                if size < start:
                    start = 0
                if from_end:
                    start = max(start, size - MAX_READ_BYTES)
                data = os.pread(file.fileno(), MAX_READ_BYTES, start)
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        if not end and len(data) == MAX_READ_BYTES:  # an endless line: print it in pieces
            self._offset = start + len(data)
            return [printable_line(data.decode(errors="replace"))]
        self._offset = start + end
        return [printable_line(line.decode(errors="replace")) for line in data[:end].split(b"\n")[:-1]]


def logs(directory: Path, *, component: str | None, process: str | None, lines: int, follow: bool) -> int:
    """Print the last lines of each log, and with ``follow`` the lines added later."""
    if component in ("agents", "tools"):
        raise ValueError(f"--component {component}: only runs on Kubernetes have {component}; add --on kubernetes")
    paths = log_files(directory, component)
    if not paths:
        raise ValueError(f"{directory}: no logs here; give a run directory")
    if process is not None and process not in paths:
        raise ValueError(f"{process}: no such process; give one of {', '.join(paths)}")
    selected = [process] if process is not None else list(paths)
    readers = {name: LogReader(paths[name]) for name in selected}
    try:
        for name, reader in readers.items():
            print_lines(name, reader.last_lines(lines), prefix=len(selected) > 1)
        while follow:
            time.sleep(FOLLOW_S)
            if process is None:  # servers may be added
                added = log_files(directory, component).items()
                readers |= {name: LogReader(path) for name, path in added if name not in readers}
            for name, reader in readers.items():
                print_lines(name, reader.new_lines(), prefix=len(readers) > 1)
    except KeyboardInterrupt:
        pass
    return 0


def log_files(directory: Path, component: str | None) -> dict[str, Path]:
    """The logs of a component, or all logs, by the name of their process."""
    pattern = {None: "*.log", "trainer": "trainer*.log", "servers": "server-*.log"}[component]
    found = sorted(names.logs_dir(directory).glob(pattern), key=lambda path: path.stem)
    return {path.stem: path for path in found}


def print_lines(name: str, lines: list[str], *, prefix: bool) -> None:
    """Print lines of a process, each with its name if ``prefix``."""
    for line in lines:
        print(f"{printable_line(name)} | {line}" if prefix else line, flush=True)
