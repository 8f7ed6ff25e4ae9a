"""The steps of a run that is watched, wherever it runs, and what must hold of them at every moment."""

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
    """What a run has written: its statistics, of which the last line may be half there, and whole checkpoints."""

    stats: bytes
    recover: list[str]  # names in recover/


@dataclass
class Steps:
    """stats.jsonl and recover/ as they grow."""

    look: Callable[[], Files]
    last: int = 0
    advanced: int = 0  # steps that were committed, repeated ones included
    lines: list[Line] = field(default_factory=list)
    times: list[tuple[float, int]] = field(default_factory=list)  # when each was first seen
    checkpoint: int = 0
    _stats: bytes = b""

    def poll(self) -> None:
        """Look; ``AssertionError`` where a step is missing, there twice, or lost past the last checkpoint."""
        files = self.look()
        if files.stats != self._stats:
            self._stats = files.stats
            self.lines = [json.loads(line) for line in files.stats.split(b"\n")[:-1]]
        steps = [int(line["step"]) for line in self.lines]
        assert steps == list(range(1, len(steps) + 1)), f"stats.jsonl holds the steps {steps}"
        assert len(steps) >= min(self.last, self.checkpoint), (
            f"stats.jsonl went back from step {self.last} to {len(steps)}, past the checkpoint {self.checkpoint}"
        )
        if len(steps) > self.last:
            self.advanced += len(steps) - self.last
            now = time.monotonic()
            self.times += [(now, step) for step in range(self.last + 1, len(steps) + 1)]
        self.last = len(steps)
        names = [name.removeprefix("step") for name in files.recover if name.startswith("step")]
        self.checkpoint = max([int(name) for name in names if name.isdigit()], default=0)

    def next_after(self, step: int, since: float) -> float | None:
        """When the step after ``step`` was done, again or for the first time; None while it is not."""
        return next((at for at, done in self.times if at > since and done > step), None)


class LocalFiles:
    """Looks at a run directory of this machine; statistics are read where they have changed."""

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
    """A run that is looked at again and again while faults strike it."""

    steps: Steps
    patience_s = 180.0  # for the next step: servers and trainer start within 30 s on an idle machine

    @abc.abstractmethod
    def tick(self) -> None:
        """Wait a moment, then look once at everything; ``AssertionError`` where something is wrong."""

    @abc.abstractmethod
    def console(self) -> str:
        """What the run said last."""

    @abc.abstractmethod
    def settle(self) -> None:
        """A fault is survived: what it excused is wrong from now on."""

    def tick_until(self, condition: Callable[[], bool], what: str, *, within_s: float | None = None) -> None:
        """Go on until ``condition`` holds; ``AssertionError`` that tells ``what`` was waited for after ``within_s``."""
        within_s = self.patience_s if within_s is None else within_s
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {within_s:.0f} s for {what}:\n{self.console()}"
            self.tick()

    def tick_for(self, seconds: float) -> None:
        """Go on for a time."""
        until = time.monotonic() + seconds
        self.tick_until(lambda: time.monotonic() >= until, "time to pass")

    def go_on(self, steps: int) -> None:
        """Wait for so many more steps."""
        wanted = self.steps.advanced + steps
        self.tick_until(
            lambda: self.steps.advanced >= wanted or self.finished, f"the step after step {self.steps.last}"
        )

    def go_on_to_the_end(self) -> None:
        """Wait for the last step, for each as long as for any."""
        while not self.finished:
            self.go_on(1)

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.steps.last >= STEPS
