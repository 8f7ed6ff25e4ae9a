"""Progress displays of a run: a live progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from areal_api import health, stat_names
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError, number
from areal_launcher.run_files import Stats
from areal_launcher.terminal_text import printable, printable_line

RATE_WINDOW_STEPS = 10
PLAIN_INTERVAL_S = 1.0
MAX_DURATION_S = 1000 * 86400


def format_duration(seconds: float) -> str:
    """``48 s``, ``2 min 05 s`` or ``3 h 07 min``; a negative time, after a clock jump, is 0 s."""
    whole = max(0, round(min(seconds, MAX_DURATION_S)))
    if whole >= MAX_DURATION_S:
        return f"more than {MAX_DURATION_S // 86400} days"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def seconds_per_step(stats: Stats) -> float | None:
    """Mean time per step over the last steps of one trainer process; None before two steps. Steps may be missing."""
    window: list[tuple[int, float]] = []
    for line in stats.lines[-RATE_WINDOW_STEPS - 1 :]:
        if window and line["time"] < window[-1][1]:
            window.clear()
        window.append((int(line["step"]), float(line["time"])))
    if len(window) < 2:
        return None
    return (window[-1][1] - window[0][1]) / (window[-1][0] - window[0][0])


def seconds_left(stats: Stats, total: int | None) -> float | None:
    """Estimated time to the last step."""
    pace = seconds_per_step(stats)
    if pace is None or total is None:
        return None
    remaining = number(max(total - stats.lines[-1]["step"], 0))
    return None if remaining is None else remaining * pace


def step_metrics(stats: Stats, total: int | None) -> list[tuple[str, str]]:
    """Labels and values of the latest step; missing statistics are omitted."""
    if not stats.lines:
        return []
    line = stats.lines[-1]
    shown = [("step", f"{line['step']}/{total}" if total else str(line["step"]))]
    reward, evaluations = run_files.value(line, stat_names.TASK_REWARD), run_files.evaluations(stats.lines)
    rate, staleness = stats.last(stat_names.TOKENS_PER_SECOND), run_files.value(line, stat_names.STALENESS)
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
        shown.append(("left", format_duration(left)))
    return shown


class HealthNews:
    """Reports each change of the warnings about the policy once."""

    def __init__(self) -> None:
        self._step = 0
        self._shown: tuple[tuple[str, ...], bool] = ((), False)
        self._rollbacks = 0.0

    def since(self, stats: Stats) -> list[str]:
        """Lines about the steps that were added since the last call."""
        if stats.lines and stats.lines[-1]["step"] < self._step:
            self._step = 0  # the run was rolled back or resumed
        news = [text for line in stats.lines if line["step"] > self._step for text in self._of(line)]
        self._step = stats.lines[-1]["step"] if stats.lines else 0
        return news

    def _of(self, line: run_files.Line) -> list[str]:
        news = []
        rollbacks = line.get(health.ROLLBACKS, 0.0)
        if rollbacks > self._rollbacks:
            news.append(f"{health.COLLAPSE_MESSAGE} and was rolled back; training continues with step {line['step']}")
        self._rollbacks = rollbacks
        found = (health.warnings_of(line), line.get(health.COLLAPSED) == 1.0)
        if found != self._shown and any(found):
            text = f"{health.COLLAPSE_MESSAGE}: " if found[1] else "warning: "
            news.append(f"step {line['step']}: {text}{health.describe(found[0])}")
        self._shown = found
        return news


class Display(Protocol):
    """Shows the progress of a run."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def phase(self, text: str) -> None:
        """Show the current phase, for example ``starting servers``."""
        ...

    def update(self, stats: Stats, total: int | None) -> None:
        """Show the latest step. Called often."""
        ...

    def message(self, text: str) -> None:
        """Print a permanent line."""
        ...


class PlainDisplay:
    """One line per phase and per step, at most one step per second; always prints the last step."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._phase = ""
        self._printed_step: int | None = None
        self._printed_at = -PLAIN_INTERVAL_S
        self._pending: tuple[int, str] | None = None
        self._health = HealthNews()

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
            text = "  ".join(f"{label} {shown}" for label, shown in step_metrics(stats, total))
            self._pending = (step, text) if step != self._printed_step else None
        for text in self._health.since(stats):
            self.message(text)
        if self._clock() - self._printed_at >= PLAIN_INTERVAL_S:
            self._flush()

    def message(self, text: str) -> None:
        self._flush()
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _flush(self) -> None:
        if self._pending is not None:
            self._printed_step, text = self._pending
            self._pending = None
            self._printed_at = self._clock()
            self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """A progress bar with the metrics of the latest step, redrawn in place."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._phase, self._phase_since = "", clock()
        self._metrics: list[tuple[str, str]] = []
        self._step, self._total = 0, 0
        self._health = HealthNews()
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
        self._metrics = step_metrics(stats, total)
        if stats.lines:
            self._step, self._total = int(stats.lines[-1]["step"]), total or 0
        for text in self._health.since(stats):
            self.message(text)

    def message(self, text: str) -> None:
        self._live.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Table:
        now = self._clock()
        head = Table.grid(padding=(0, 2))
        phase = Text.assemble(
            (printable_line(self._phase), "bold cyan"), (f" ({format_duration(now - self._phase_since)})", "dim")
        )
        bar = ProgressBar(total=self._total or None, completed=self._step, width=30, pulse=not self._total)
        head.add_row(phase, bar, Text(format_duration(now - self._started), "dim"))
        line = Text("  ").join(Text.assemble((f"{label} ", "dim"), (shown, "bold")) for label, shown in self._metrics)
        whole = Table.grid()
        whole.add_row(head)
        whole.add_row(line)
        return whole


def show_added_steps(display: Display, stats: Stats) -> None:
    """Read what was added to the statistics and show the latest step. A file that cannot be read is only reported."""
    try:
        stats.poll()
    except (OSError, DamagedFileError) as error:
        display.message(f"grpo cannot show the progress: {error}")
    if stats.lines:
        total = stats.last(stat_names.TOTAL_STEPS)
        display.update(stats, int(total) if total else None)


def display_for(console: Console) -> Display:
    """A live display on a terminal that can move its cursor, plain lines elsewhere.

    FORCE_COLOR makes rich take a pipe for a terminal.
    """
    can_redraw = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
    return LiveDisplay(console) if can_redraw else PlainDisplay(console)
