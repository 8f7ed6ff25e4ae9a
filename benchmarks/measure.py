"""Measures two implementations of the same work alternately and prints their ratio with its spread."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Comparison:
    """Rates of both sides, one pair per round; higher is better. ``goal`` applies to the ratio ours ÷ baseline."""

    name: str
    work: str  # the work that both sides do, with its sizes
    unit: str
    ours: list[float]
    baseline_name: str
    baseline: list[float]
    goal: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Ours ÷ baseline of each round."""
        return [a / b for a, b in zip(self.ours, self.baseline, strict=True)]

    @property
    def ratio(self) -> float:
        """Median ratio over the rounds."""
        return statistics.median(self.ratios)

    def report(self) -> str:
        """Lines for the terminal."""
        goal = (
            "" if self.goal is None else f", goal ≥ {self.goal:.3g}: {'met' if self.ratio >= self.goal else 'missed'}"
        )
        return "\n".join(
            [
                f"{self.name}: {self.work}; {len(self.ours)} rounds",
                f"  {'ours':<44} {spread(self.ours)} {self.unit}",
                f"  {self.baseline_name:<44} {spread(self.baseline)} {self.unit}",
                f"  {'ratio':<44} {spread(self.ratios)}{goal}",
                *(f"  {note}" for note in self.notes),
            ]
        )


def by_turns(
    ours: Callable[[], float], baseline: Callable[[], float], *, rounds: int, warm_up: bool = True
) -> tuple[list[float], list[float]]:
    """Results of both sides over ``rounds``, alternating which runs first. ``warm_up``: discard a first round."""
    if warm_up:
        ours(), baseline()
    results: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        sides = [(results[0], ours), (results[1], baseline)]
        for values, side in sides if number % 2 == 0 else reversed(sides):
            values.append(side())
    return results


def rate(amount: float, work: Callable[[], object]) -> float:
    """``amount`` divided by the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return amount / (time.perf_counter() - started)


def spread(values: list[float]) -> str:
    """Median and, for several values, the range."""
    median = statistics.median(values)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    if len(values) == 1:
        return f"{median:,.{digits}f}"
    return f"{median:,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def machine() -> str:
    """Cores, processor and load, for the head of a report."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, {model}, load {load:.1f} at the start"
