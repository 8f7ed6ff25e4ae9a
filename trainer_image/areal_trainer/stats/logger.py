"""Statistics of a run: ``stats.jsonl`` with one line per step, configured services, ``summary.json``, timings."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from areal_api import names
from areal_api.loggers import StatsLoggerConfig
from areal_api.stat_names import TIMING_PREFIX
from areal_trainer.stats.sinks import open_sinks
from areal_trainer.tracing import span


class StatsLogger:
    """Writes the statistics of each step durably to ``stats.jsonl``, then to the configured services.

    Raises ``ValueError`` if a service needs an API key that is not set.
    """

    def __init__(
        self,
        run: Path,
        config: StatsLoggerConfig,
        *,
        experiment_name: str,
        trial_name: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._path = names.stats_file(run)
        self._file: TextIO | None = None
        self._sinks = open_sinks(
            run, config, experiment_name=experiment_name, trial_name=trial_name, settings=settings or {}
        )

    def rewind(self, step: int) -> int:
        """Drop all lines after ``step``, the step of the checkpoint to resume from, and any incomplete line.

        Returns the step of the last remaining line, or 0.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        kept = list(_whole_lines(self._path, up_to=step))
        if self._path.exists():
            replace_file(self._path, "".join(kept))
        return int(json.loads(kept[-1])["step"]) if kept else 0

    def commit(self, stats: Mapping[str, float]) -> None:
        """Write the statistics after ``stats["step"]`` steps. Non-finite values are null in ``stats.jsonl``."""
        step = int(stats["step"])
        line = {name: value if math.isfinite(value) else None for name, value in stats.items()}
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        os.fdatasync(self._file.fileno())
        for sink in self._sinks:
            sink.log(step, {name: value for name, value in stats.items() if name != "step"})

    def close(self) -> None:
        """Flush and close all services."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Timings:
    """Seconds per stage of a step.

    >>> timings = Timings()
    >>> with timings.stage("rollout"):
    ...     pass
    >>> list(timings.as_stats())
    ['timeperf/rollout']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block. Blocks of the same name add up; a block that raises counts too."""
        began = time.perf_counter()
        try:
            with span(name, thread="training"):
                yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add ``seconds`` that were measured elsewhere to a stage."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def as_stats(self) -> dict[str, float]:
        """The stages so far as ``timeperf/<name>``."""
        return {f"{TIMING_PREFIX}{name}": seconds for name, seconds in self._seconds.items()}


def write_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json`` atomically."""
    replace_file(names.summary_file(run), json.dumps(dict(summary), indent=2) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Replace the file atomically: readers see the complete old or new text, also after a crash."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _whole_lines(path: Path, *, up_to: int) -> Iterator[str]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                step = json.loads(line)["step"]
            except ValueError:  # incomplete: the process was killed
                continue
            if line.endswith("\n") and step <= up_to:
                yield line
