"""What the runs of a session survived."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field

from faults.schedule import DECK, Kind
from faults.strikes import Struck
from faults.watched import WatchedRun

DEATHS: tuple[Kind, ...] = ("kill server", "end server")


@dataclass
class Report:
    """Counts over all runs, and what deaths cost."""

    _injected: Counter[Kind] = field(default_factory=Counter)
    _survived: Counter[Kind] = field(default_factory=Counter)
    _seconds: dict[Kind, list[float]] = field(default_factory=dict)
    _no_disk: str | None = None

    def not_injected(self, reason: str | None) -> None:
        """Why no disk was filled."""
        self._no_disk = reason

    def injected(self, kind: Kind) -> None:
        """A fault was brought about."""
        self._injected[kind] += 1

    def survived(self, struck: Struck, run: WatchedRun) -> None:
        """A fault of a run that ended as it should; what it cost."""
        kind = struck.fault.kind
        self._survived[kind] += 1
        back = _serves_again(struck, run) if kind in DEATHS else _is_where_it_was(struck, run)
        if back is not None:
            self._seconds.setdefault(kind, []).append(back - struck.at)

    def lines(self) -> list[str]:
        """A table; empty where nothing was tried."""
        if not self._injected:
            return []
        lines = [f"{'fault':<17}{'injected':>9}{'survived':>9}   seconds until back, median (range)"]
        for kind in DECK:
            if kind == "full disk" and self._no_disk:
                lines.append(f"{kind:<17}{0:>9}{0:>9}   not injected: {self._no_disk}")
                continue
            lines.append(f"{kind:<17}{self._injected[kind]:>9}{self._survived[kind]:>9}   {self._cost(kind)}")
        lines.append(f"{'all':<17}{self._injected.total():>9}{self._survived.total():>9}")
        return lines

    def _cost(self, kind: Kind) -> str:
        seconds = self._seconds.get(kind)
        if not seconds:
            return ""
        what = "serves current weights again" if kind in DEATHS else "at the next step"
        return f"{statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f}), {what}"


def _serves_again(struck: Struck, run: WatchedRun) -> float | None:
    """When a killed server gave its next answer that the trainer got; None where it never did."""
    assert struck.server is not None
    times = [
        exchange.delivered
        for exchange in run.proxies[struck.server].exchanges
        if exchange.path == "/generate"
        and exchange.status == 200
        and exchange.delivered is not None
        and exchange.began > struck.over
    ]
    return min(times, default=None)


def _is_where_it_was(struck: Struck, run: WatchedRun) -> float | None:
    """When the step after the last one before the fault was done, again or for the first time."""
    return next((at for at, step in run.steps.times if at > struck.over and step > struck.step), None)
