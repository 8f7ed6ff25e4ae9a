"""Watches the steps of a run and checks the invariants that hold at every moment."""

from __future__ import annotations

import abc
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.schedule import STEPS

Line = dict[str, Any]  # of stats.jsonl


@dataclass(frozen=True)
class Files:
    """Files of a run: its statistics, whose last line may be incomplete, and complete checkpoints."""

    stats: bytes
    recover: list[str]  # names in recover/


@dataclass
class Steps:
    """Follows stats.jsonl and recover/."""

    look: Callable[[], Files]
    last: int = 0
    advanced: int = 0  # committed steps, including repeated ones
    lines: list[Line] = field(default_factory=list)
    times: list[tuple[float, int]] = field(default_factory=list)  # when each was first seen
    checkpoint: int = 0
    _stats: bytes = b""

    def poll(self) -> None:
        """Read the files. Raises ``AssertionError`` if a step is missing, duplicated or lost past a checkpoint."""
        files = self.look()
        if files.stats != self._stats:
            self._stats = files.stats
            self.lines = [json.loads(line) for line in files.stats.split(b"\n")[:-1]]
        steps = [int(line["step"]) for line in self.lines]
        assert steps == list(range(1, len(steps) + 1)), f"stats.jsonl holds the steps {steps}"
        assert len(steps) >= min(self.last, self.checkpoint), (
            f"stats.jsonl went back from step {self.last} to {len(steps)}, past checkpoint {self.checkpoint}"
        )
        if len(steps) > self.last:
            self.advanced += len(steps) - self.last
            now = time.monotonic()
            self.times += [(now, step) for step in range(self.last + 1, len(steps) + 1)]
        self.last = len(steps)
        names = [name.removeprefix("step") for name in files.recover if name.startswith("step")]
        self.checkpoint = max([int(name) for name in names if name.isdigit()], default=0)

    def next_after(self, step: int, since: float) -> float | None:
        """When a step after ``step`` completed after ``since``, or None."""
        return next((at for at, done in self.times if at > since and done > step), None)


class LocalFiles:
    """Reads a run directory on this machine; statistics only when they have changed."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._seen: tuple[int, int, int] = (0, 0, 0)
        self._stats = b""

    def __call__(self) -> Files:
        try:
            with (self._run / "stats.jsonl").open("rb") as file:
                status = os.fstat(file.fileno())
                if (seen := (status.st_ino, status.st_size, status.st_mtime_ns)) != self._seen:
                    self._stats, self._seen = file.read(), seen
        except FileNotFoundError:
            self._stats, self._seen = b"", (0, 0, 0)
        return Files(self._stats, [path.name for path in (self._run / "recover").glob("step*")])


class Watched(abc.ABC):
    """A run that is polled while faults are injected."""

    steps: Steps
    total = STEPS  # steps of the run
    patience_s = 180.0  # deadline for the next step; on an idle machine servers and trainer start within 30 s

    @abc.abstractmethod
    def tick(self) -> None:
        """Sleep briefly, then poll everything once. Raises ``AssertionError`` on a violation."""

    @abc.abstractmethod
    def console(self) -> str:
        """The last output of the run."""

    @abc.abstractmethod
    def fault_survived(self) -> None:
        """Stop tolerating failures that only the previous fault excused."""

    def tick_until(self, condition: Callable[[], bool], what: str, *, within_s: float | None = None) -> None:
        """Tick until ``condition`` holds. Raises ``AssertionError`` naming ``what`` after ``within_s``."""
        within_s = self.patience_s if within_s is None else within_s
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {within_s:.0f} s for {what}:\n{self.console()}"
            self.tick()

    def tick_for(self, seconds: float) -> None:
        """Tick for a number of seconds."""
        until = time.monotonic() + seconds
        self.tick_until(lambda: time.monotonic() >= until, "time to pass")

    def advance(self, steps: int) -> None:
        """Wait for a number of further steps."""
        wanted = self.steps.advanced + steps
        self.tick_until(
            lambda: self.steps.advanced >= wanted or self.finished, f"the step after step {self.steps.last}"
        )

    def advance_to_end(self) -> None:
        """Wait for the last step, allowing each step the usual time."""
        while not self.finished:
            self.advance(1)

    @property
    def finished(self) -> bool:
        """Whether the last step has completed."""
        return self.steps.last >= self.total
