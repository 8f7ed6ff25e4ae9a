"""What a person sees of a run: progress while it goes on, a table when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from areal_api import names
from areal_launcher import run_files
from areal_launcher.run_files import Stats

RATE_WINDOW_STEPS = 10
PLAIN_INTERVAL_S = 1.0


def duration(seconds: float) -> str:
    """A time as a person says it: ``48 s``, ``2 min 05 s``, ``3 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def seconds_a_step(stats: Stats) -> float | None:
    """Mean time of the last steps, one and the same process's; None before there are two. Steps may be missing."""
    seen: list[tuple[int, float]] = []
    for line in stats.lines[-RATE_WINDOW_STEPS - 1 :]:
        if seen and line["time"] < seen[-1][1]:
            seen.clear()
        seen.append((int(line["step"]), float(line["time"])))
    if len(seen) < 2:
        return None
    return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])


def seconds_left(stats: Stats, total: int | None) -> float | None:
    """Estimate of the time until the last step."""
    pace = seconds_a_step(stats)
    if pace is None or total is None:
        return None
    return max(total - stats.lines[-1]["step"], 0) * pace


def figures(stats: Stats, total: int | None) -> list[tuple[str, str]]:
    """Label and text of what is shown of the newest step; what is not known is left out."""
    if not stats.lines:
        return []
    line = stats.lines[-1]
    shown = [("step", f"{line['step']}/{total}" if total else str(line["step"]))]
    reward, evaluations = run_files.value(line, run_files.REWARD), run_files.evaluations(stats.lines)
    rate, staleness = stats.last(run_files.TOKENS_PER_SECOND), run_files.value(line, run_files.STALENESS)
    left = seconds_left(stats, total)
    if reward is not None:
        shown.append(("reward", f"{reward:.3f}"))
    if evaluations:
        shown.append(("eval", f"{evaluations[-1][1]:.3f}"))
    if rate is not None:
        shown.append(("tok/s", f"{rate:,.0f}"))
    if staleness is not None:
        shown.append(("staleness", f"{staleness:.2f}"))
    if left:
        shown.append(("left", duration(left)))
    return shown


class Display(Protocol):
    """Follows a run."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def phase(self, text: str) -> None:
        """What goes on now, such as ``starting servers``."""
        ...

    def update(self, stats: Stats, total: int | None) -> None:
        """Show the newest step; called often."""
        ...

    def message(self, text: str) -> None:
        """A line that stays."""
        ...


class PlainDisplay:
    """One line a phase and a step, at most one step a second; the last step is always written."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._phase = ""
        self._written_step: int | None = None
        self._written_at = -PLAIN_INTERVAL_S
        self._waiting: tuple[int, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()

    def phase(self, text: str) -> None:
        if text != self._phase:
            self._phase = text
            self.message(text)

    def update(self, stats: Stats, total: int | None) -> None:
        if stats.lines:
            step = int(stats.lines[-1]["step"])
            text = "  ".join(f"{label} {shown}" for label, shown in figures(stats, total))
            self._waiting = (step, text) if step != self._written_step else None
        if self._clock() - self._written_at >= PLAIN_INTERVAL_S:
            self._flush()

    def message(self, text: str) -> None:
        self._flush()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _flush(self) -> None:
        if self._waiting is not None:
            self._written_step, text = self._waiting
            self._waiting = None
            self._written_at = self._clock()
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """A progress bar with the figures of the newest step, redrawn in place."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._phase, self._phase_since = "", clock()
        self._shown: list[tuple[str, str]] = []
        self._step, self._total = 0, 0
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def phase(self, text: str) -> None:
        if text != self._phase:
            self._phase, self._phase_since = text, self._clock()

    def update(self, stats: Stats, total: int | None) -> None:
        self._shown = figures(stats, total)
        if stats.lines:
            self._step, self._total = int(stats.lines[-1]["step"]), total or 0

    def message(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Table:
        now = self._clock()
        head = Table.grid(padding=(0, 2))
        phase = Text.assemble((self._phase, "bold cyan"), (f" ({duration(now - self._phase_since)})", "dim"))
        bar = ProgressBar(total=self._total or None, completed=self._step, width=30, pulse=not self._total)
        head.add_row(phase, bar, Text(duration(now - self._started), "dim"))
        line = Text("  ").join(Text.assemble((f"{label} ", "dim"), (shown, "bold")) for label, shown in self._shown)
        whole = Table.grid()
        whole.add_row(head)
        whole.add_row(line)
        return whole


def display_for(console: Console) -> Display:
    """A live display on a terminal, plain lines elsewhere."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def closing_rows(run: Path) -> list[tuple[str, str]]:
    """Label and text of the closing table: from summary.json, else from the statistics so far."""
    stats, summary = run_files.read_stats(run), run_files.read_summary(run) or {}
    lines = stats.lines

    def known(name: str, otherwise: float | None) -> Any:
        found = summary.get(name)
        return otherwise if found is None else found

    rewards = [found for line in lines if (found := run_files.value(line, run_files.REWARD)) is not None]
    seconds = known("seconds", float(lines[-1]["time"]) if lines else None)
    rate = known("tokens_per_second", stats.last(run_files.TOKENS_PER_SECOND))
    mean = [found for line in lines if (found := run_files.value(line, run_files.STALENESS)) is not None]
    most = [found for line in lines if (found := run_files.value(line, run_files.STALENESS_MAX)) is not None]
    rows: list[tuple[str, str | None]] = [
        ("outcome", summary.get("outcome")),
        ("steps", str(known("steps", lines[-1]["step"] if lines else 0))),
        ("reward, first → last", ends(summary, "reward", rewards)),
        ("evaluation, first → last", ends(summary, "eval", [reward for _, reward in run_files.evaluations(lines)])),
        ("time", duration(seconds) if seconds is not None else None),
        ("tokens per second", f"{rate:,.0f}" if rate is not None else None),
        ("staleness", f"{sum(mean) / len(mean):.2f} (at most {max(most or mean):.0f})" if mean else None),
        ("model", last_checkpoint(run) or in_cluster(run)),
        ("picture", existing(names.reward_plot(run))),
        ("statistics", existing(names.stats_file(run))),
        ("logs", existing(names.logs_dir(run))),
    ]
    return [(label, text) for label, text in rows if text is not None]


def ends(summary: dict[str, Any], prefix: str, values: list[float]) -> str | None:
    """``0.312 → 0.957``: first and last value, by summary.json where it has them; None when there is none."""
    first, last = summary.get(f"{prefix}_first"), summary.get(f"{prefix}_last")
    if values:
        first, last = values[0] if first is None else first, values[-1] if last is None else last
    return None if first is None or last is None else f"{first:.3f} → {last:.3f}"


def existing(path: Path) -> str | None:
    """The path as text, or None when nothing is there."""
    return str(path) if path.exists() else None


def last_checkpoint(run: Path) -> str | None:
    """The newest Hugging Face checkpoint."""
    root = names.checkpoints_dir(run)
    found = [path for path in root.iterdir() if (path / "config.json").exists()] if root.is_dir() else []
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def in_cluster(run: Path) -> str | None:
    """Where the checkpoints of a run lie whose results were fetched from a cluster."""
    where = run_files.read_cluster(run)
    if where is None:
        return None
    return f"on the volume claim {where['claim']} of namespace {where['namespace']}, below {where['directory']}"


def closing_table(run: Path) -> Table:
    """What came out of a run."""
    table = Table(show_header=False, title=str(run), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in closing_rows(run):
        table.add_row(label, text)
    return table
