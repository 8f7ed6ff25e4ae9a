"""The results of a run as a table, printed when it ends and by `grpo status`."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from areal_api import health, names, stat_names
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError, number
from areal_launcher.display import format_duration
from areal_launcher.terminal_text import printable_line

MAX_CHECKPOINTS = 10_000
MAX_OUTCOME_LENGTH = 200


def result_rows(run: Path) -> list[tuple[str, str]]:
    """Labels and values, from summary.json if present, else from the statistics so far."""
    problems: list[str] = []
    stats, summary, source = run_files.Stats(names.stats_file(run)), None, None
    try:
        stats.poll()
        summary, source = run_files.read_summary(run), run_files.read_cluster(run)
    except DamagedFileError as error:
        problems.append(str(error))
    if stats.damaged:
        problems.append(f"{stats.path.name} has {stats.damaged} damaged lines, which are ignored")
    known = summary or {}
    return [(label, text) for label, text in _rows(run, stats, known, source, problems) if text is not None]


def _rows(
    run: Path, stats: run_files.Stats, summary: dict[str, Any], source: dict[str, str] | None, problems: list[str]
) -> list[tuple[str, str | None]]:
    lines = stats.lines
    rewards = run_files.values(lines, stat_names.TASK_REWARD)
    staleness = run_files.values(lines, stat_names.STALENESS)
    max_staleness = run_files.values(lines, stat_names.maximum(stat_names.STALENESS)) or staleness
    evaluations = [reward for _, reward in run_files.evaluations(lines)]
    last = lines[-1] if lines else {}
    steps, seconds = (
        first_number(summary.get("steps"), last.get("step"), 0),
        first_number(summary.get("seconds"), last.get("time")),
    )
    rate = first_number(summary.get("tokens_per_second"), stats.last(stat_names.TOKENS_PER_SECOND))
    mean = sum(staleness) / len(staleness) if staleness else None
    outcome = summary.get("outcome")
    rollbacks = first_number(summary.get("rollbacks"), last.get(health.ROLLBACKS))
    return [
        ("outcome", outcome[:MAX_OUTCOME_LENGTH] if isinstance(outcome, str) else None),
        ("steps", f"{steps or 0:.0f}"),
        ("rollbacks", f"{rollbacks:.0f}" if rollbacks else None),
        ("reward, first → last", first_and_last(summary, "reward", rewards)),
        ("evaluation, first → last", first_and_last(summary, "eval", evaluations)),
        ("time", format_duration(seconds) if seconds is not None else None),
        ("tokens per second", f"{rate:,.0f}" if rate is not None else None),
        ("staleness", f"{mean:.2f} (at most {max(max_staleness):.0f})" if mean is not None else None),
        ("model", last_checkpoint(run) or checkpoints_in_cluster(source)),
        ("plot", existing(names.reward_plot(run))),
        ("statistics", existing(names.stats_file(run))),
        ("logs", existing(names.logs_dir(run))),
        ("warning", "; ".join(problems) or None),
    ]


def first_number(*candidates: object) -> float | None:
    """The first candidate that is a finite number."""
    return next((value for candidate in candidates if (value := number(candidate)) is not None), None)


def first_and_last(summary: dict[str, Any], prefix: str, values: list[float]) -> str | None:
    """``0.312 → 0.957``: first and last value, preferring summary.json; None if there are none."""
    first = first_number(summary.get(f"{prefix}_first"), *values[:1])
    last = first_number(summary.get(f"{prefix}_last"), *values[-1:])
    return None if first is None or last is None else f"{first:.3f} → {last:.3f}"


def existing(path: Path) -> str | None:
    """The path as text, or None if it does not exist."""
    return str(path) if os.path.exists(path) else None


def last_checkpoint(run: Path) -> str | None:
    """The newest complete Hugging Face checkpoint, by the step in its name: clocks may jump."""
    root = names.checkpoints_dir(run)
    try:
        with os.scandir(root) as entries:
            found = [entry.name for entry in itertools.islice(entries, MAX_CHECKPOINTS)]
    except OSError:
        return None
    complete = [name for name in found if not name.startswith(".") and os.path.isfile(root / name / "config.json")]
    return str(root / max(complete, key=checkpoint_order)) if complete else None


def checkpoint_order(name: str) -> tuple[list[int], str]:
    """Sort key of ``epoch1step10``: numbers are compared as numbers."""
    return [int(digits[:18]) for digits in re.findall(r"[0-9]+", name)], name


def checkpoints_in_cluster(source: dict[str, str] | None) -> str | None:
    """Location of the checkpoints of a run whose results were fetched from a cluster."""
    if source is None:
        return None
    return f"on the volume claim {source['claim']} of namespace {source['namespace']}, below {source['directory']}"


def results_table(run: Path) -> Table:
    """The results of a run."""
    table = Table(show_header=False, title=Text(printable_line(str(run))), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in result_rows(run):
        table.add_row(label, Text(printable_line(text)))
    return table
