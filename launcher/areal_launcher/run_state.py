"""The state of a run and how far it is, from the files in its directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from areal_api import names, stat_names
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError

MAX_TEXT = 500


@dataclass(frozen=True)
class State:
    """State of a run: running, succeeded, stopped, failed, collapsed or interrupted, and the reason if there is one."""

    name: str
    reason: str = ""


def state_of(run: Path) -> State:
    """The state of a run, from its lock and its summary."""
    try:
        if run_files.launcher_pid(run) is not None:
            return State("running")
        summary = run_files.read_summary(run)
    except (DamagedFileError, OSError) as error:
        return State("damaged", clipped(str(error)))
    if summary is None:
        return State("interrupted", "the run ended without a summary; the same command continues it")
    outcome = summary.get("outcome")
    return State(clipped(outcome) if isinstance(outcome, str) else "finished", clipped(str(summary.get("error") or "")))


def clipped(text: str) -> str:
    """``text``, shortened to what a page can show in a line."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


@dataclass(frozen=True)
class Progress:
    """How far a run is, from the end of its statistics."""

    step: int | None
    total: int | None
    reward: float | None
    changed: float | None  # when the statistics last changed, as a Unix time


def progress_of(run: Path) -> Progress:
    """How far a run is. Reads the end of stats.jsonl only."""
    last = newest_line(run)
    total = last.get(stat_names.TOTAL_STEPS)
    return Progress(
        last.get("step"),
        None if total is None else int(total),
        run_files.value(last, stat_names.TASK_REWARD),
        changed(run),
    )


def newest_line(run: Path) -> run_files.Line:
    """The last undamaged line of the statistics; empty without one."""
    try:
        tail = run_files.read_last_lines(names.stats_file(run))
    except (DamagedFileError, OSError):
        return {}
    lines = (run_files.parse_line(text) for text in reversed(tail))
    return next((line for line in lines if line is not None), {})


def changed(run: Path) -> float | None:
    """When the statistics last changed, as a Unix time."""
    try:
        return os.stat(names.stats_file(run)).st_mtime
    except OSError:
        return None
