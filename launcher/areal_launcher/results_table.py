"""The results of a run as a table, printed when it ends and by `grpo status`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from areal_api import names, stat_names
from areal_launcher import run_files
from areal_launcher.display import format_duration


def result_rows(run: Path) -> list[tuple[str, str]]:
    """Labels and values, from summary.json if present, else from the statistics so far."""
    stats, summary = run_files.read_stats(run), run_files.read_summary(run) or {}
    lines = stats.lines

    def from_summary(name: str, default: float | None) -> Any:
        recorded = summary.get(name)
        return default if recorded is None else recorded

    rewards = run_files.values(lines, stat_names.TASK_REWARD)
    staleness = run_files.values(lines, stat_names.STALENESS)
    max_staleness = run_files.values(lines, stat_names.maximum(stat_names.STALENESS)) or staleness
    evaluations = [reward for _, reward in run_files.evaluations(lines)]
    seconds = from_summary("seconds", float(lines[-1]["time"]) if lines else None)
    rate = from_summary("tokens_per_second", stats.last(stat_names.TOKENS_PER_SECOND))
    mean = sum(staleness) / len(staleness) if staleness else None
    rows: list[tuple[str, str | None]] = [
        ("outcome", summary.get("outcome")),
        ("steps", str(from_summary("steps", lines[-1]["step"] if lines else 0))),
        ("reward, first → last", first_and_last(summary, "reward", rewards)),
        ("evaluation, first → last", first_and_last(summary, "eval", evaluations)),
        ("time", format_duration(seconds) if seconds is not None else None),
        ("tokens per second", f"{rate:,.0f}" if rate is not None else None),
        ("staleness", f"{mean:.2f} (at most {max(max_staleness):.0f})" if mean is not None else None),
        ("model", last_checkpoint(run) or checkpoints_in_cluster(run)),
        ("plot", existing(names.reward_plot(run))),
        ("statistics", existing(names.stats_file(run))),
        ("logs", existing(names.logs_dir(run))),
    ]
    return [(label, text) for label, text in rows if text is not None]


def first_and_last(summary: dict[str, Any], prefix: str, values: list[float]) -> str | None:
    """``0.312 → 0.957``: first and last value, preferring summary.json; None if there are none."""
    first, last = summary.get(f"{prefix}_first"), summary.get(f"{prefix}_last")
    if values:
        first, last = values[0] if first is None else first, values[-1] if last is None else last
    return None if first is None or last is None else f"{first:.3f} → {last:.3f}"


def existing(path: Path) -> str | None:
    """The path as text, or None if it does not exist."""
    return str(path) if path.exists() else None


def last_checkpoint(run: Path) -> str | None:
    """The newest Hugging Face checkpoint."""
    root = names.checkpoints_dir(run)
    paths = [path for path in root.iterdir() if (path / "config.json").exists()] if root.is_dir() else []
    return str(max(paths, key=lambda path: path.stat().st_mtime)) if paths else None


def checkpoints_in_cluster(run: Path) -> str | None:
    """Location of the checkpoints of a run whose results were fetched from a cluster."""
    source = run_files.read_cluster(run)
    if source is None:
        return None
    return f"on the volume claim {source['claim']} of namespace {source['namespace']}, below {source['directory']}"


def results_table(run: Path) -> Table:
    """The results of a run."""
    table = Table(show_header=False, title=str(run), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in result_rows(run):
        table.add_row(label, text)
    return table
