"""`grpo list`: the runs below some folders, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from areal_launcher.catalog import Catalog, RunEntry, require_folders
from areal_launcher.console import console_for
from areal_launcher.run_state import progress_of, state_of
from areal_launcher.terminal_text import printable_line

COLUMNS = ("RUN", "STATE", "STEP", "REWARD", "REASON")


def list_runs(roots: Sequence[Path]) -> int:
    """Print a line for each run, by name. Raises ``ValueError`` if a folder does not exist."""
    require_folders(roots)
    entries = Catalog(roots).scan()
    console = console_for()
    if not entries:
        console.print("no runs", markup=False)
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in COLUMNS:
        table.add_column(column, no_wrap=column != "REASON", overflow="fold")
    for entry in entries:
        table.add_row(*(Text(printable_line(cell)) for cell in _cells(entry)))
    console.print(table)
    return 0


def _cells(entry: RunEntry) -> list[str]:
    state, progress = state_of(entry.path), progress_of(entry.path)
    steps = "" if progress.step is None else str(progress.step)
    if steps and progress.total:
        steps += f"/{progress.total}"
    reward = "" if progress.reward is None else f"{progress.reward:.3f}"
    return [entry.name, state.name, steps, reward, state.reason]
