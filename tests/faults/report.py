"""Counts of injected and survived faults in a test session."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest

from faults.schedule import Kind


@dataclass
class Report:
    """Counts and recovery times over all runs. ``deaths``: kinds whose recovery is a server's, not the next step."""

    title: str
    kinds: Collection[Kind]
    deaths: Collection[Kind]
    _injected: Counter[Kind] = field(default_factory=Counter)
    _survived: Counter[Kind] = field(default_factory=Counter)
    _seconds: dict[Kind, list[float]] = field(default_factory=dict)
    _not_injected: dict[Kind, str] = field(default_factory=dict)

    def not_injected(self, kind: Kind, reason: str) -> None:
        """Record why a kind cannot be injected here."""
        self._not_injected[kind] = reason

    def injected(self, kind: Kind) -> None:
        """Record an injected fault."""
        self._injected[kind] += 1

    def survived(self, kind: Kind, seconds: float | None) -> None:
        """Record a fault of a run that ended correctly and its recovery time, if observed."""
        self._survived[kind] += 1
        if seconds is not None:
            self._seconds.setdefault(kind, []).append(seconds)

    def lines(self) -> list[str]:
        """The table; empty if nothing was injected."""
        if not self._injected:
            return []
        lines = [f"{'fault':<22}{'injected':>9}{'survived':>9}   seconds until back, median (range)"]
        for kind in self.kinds:
            cost = f"not injected: {why}" if (why := self._not_injected.get(kind)) else self._cost(kind)
            lines.append(f"{kind:<22}{self._injected[kind]:>9}{self._survived[kind]:>9}   {cost}")
        lines.append(f"{'all':<22}{self._injected.total():>9}{self._survived.total():>9}")
        return lines

    def show(self, reporter: pytest.TerminalReporter) -> None:
        """Print the table, if there is one."""
        if lines := self.lines():
            reporter.section(self.title)
            for line in lines:
                reporter.write_line(line)

    def _cost(self, kind: Kind) -> str:
        seconds = self._seconds.get(kind)
        if not seconds:
            return ""
        what = "serves current weights again" if kind in self.deaths else "at the next step"
        return f"{statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f}), {what}"
