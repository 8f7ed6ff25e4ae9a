"""What the runs of a session survived."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest

from faults.schedule import Kind


@dataclass
class Report:
    """Counts over all runs, and what faults cost. ``deaths``: kinds after which a server is waited for, not a step."""

    title: str
    kinds: Collection[Kind]
    deaths: Collection[Kind]
    _injected: Counter[Kind] = field(default_factory=Counter)
    _survived: Counter[Kind] = field(default_factory=Counter)
    _seconds: dict[Kind, list[float]] = field(default_factory=dict)
    _not_injected: dict[Kind, str] = field(default_factory=dict)

    def not_injected(self, kind: Kind, reason: str) -> None:
        """Why a kind is not brought about here."""
        self._not_injected[kind] = reason

    def injected(self, kind: Kind) -> None:
        """A fault was brought about."""
        self._injected[kind] += 1

    def survived(self, kind: Kind, seconds: float | None) -> None:
        """A fault of a run that ended as it should; what it cost, where that was seen."""
        self._survived[kind] += 1
        if seconds is not None:
            self._seconds.setdefault(kind, []).append(seconds)

    def lines(self) -> list[str]:
        """A table; empty where nothing was tried."""
        if not self._injected:
            return []
        lines = [f"{'fault':<22}{'injected':>9}{'survived':>9}   seconds until back, median (range)"]
        for kind in self.kinds:
            cost = f"not injected: {why}" if (why := self._not_injected.get(kind)) else self._cost(kind)
            lines.append(f"{kind:<22}{self._injected[kind]:>9}{self._survived[kind]:>9}   {cost}")
        lines.append(f"{'all':<22}{self._injected.total():>9}{self._survived.total():>9}")
        return lines

    def show(self, reporter: pytest.TerminalReporter) -> None:
        """Write the table, if there is one."""
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
