"""The statistics of a run as columns, which a page draws; thinned out where a run has more steps than pixels.

``run_files.Stats`` keeps a dictionary per step. At 100,000 steps that is a gigabyte; columns take 8 bytes per value.
Lines with the same names, as most neighbours are, become rows of a matrix whose columns are appended at once.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areal_api import names, stat_names
from areal_api.stat_names import ACTOR_PREFIX
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError, opened
from areal_launcher.run_files import MAX_LINE_BYTES, parse_line

COMPLETION_LENGTH = "completion_len"
MAX_SHOWN = 1e30
HIDDEN = frozenset({"step", "time", stat_names.EVAL_REWARD_INITIAL})
MAX_COLUMNS = 1_000
MAX_STEPS = 1_000_000
CHUNK_BYTES = 16 * 2**20  # read per poll
MIN_ROWS = 4  # of a matrix; fewer lines are added one by one

Floats = NDArray[np.float64]


def shown_name(key: str) -> str:
    """The name under which a statistic is shown: without AReaL's prefix and ``/avg``."""
    return key.removeprefix(ACTOR_PREFIX).removesuffix("/avg")


class _Column:
    """A growing column; rows that nobody set are NaN. An ``array``, whose items are set faster than NumPy's."""

    def __init__(self) -> None:
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._values)

    def put(self, row: int, value: float) -> None:
        """Set ``row``, which is at or after the end."""
        self._fill(row)
        self._values.append(value)

    def put_rows(self, row: int, values: Floats) -> None:
        """Set the rows from ``row`` on, which is at or after the end."""
        self._fill(row)
        self._values.frombytes(np.ascontiguousarray(values, dtype=np.float64).tobytes())

    def _fill(self, row: int) -> None:
        missing = row - len(self._values)
        if missing > 0:
            self._values.extend(repeat(math.nan, missing))

    def head(self, rows: int) -> Floats:
        """A copy of the first ``rows`` values. [rows]"""
        values = np.array(self._values[:rows], dtype=np.float64)
        return np.concatenate([values, np.full(rows - len(values), np.nan)])

    def cut(self, rows: int) -> None:
        """Drop everything from ``rows`` on."""
        del self._values[rows:]


@dataclass(frozen=True)
class Points:
    """Statistics by step. A point of a thinned series stands for several steps: their mean, minimum and maximum."""

    steps: list[int]
    means: dict[str, list[float | None]]
    low: dict[str, list[float | None]]  # empty without thinning
    high: dict[str, list[float | None]]

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        return {"steps": self.steps, "means": self.means, "low": self.low, "high": self.high}


class ColumnTable:
    """Columns of statistics by step. A step that is added again replaces it and drops the steps after it.

    ``changes`` counts times that earlier steps changed: a page that drew them has to draw them again.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._columns: dict[str, _Column] = {}  # by shown name
        self._by_key: dict[str, _Column] = {}  # by name in the file
        self._steps = _Column()
        self._rows = 0
        self._last_step = 0

    def __len__(self) -> int:
        return self._rows

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    @property
    def last_step(self) -> int:
        """The newest step; 0 without any."""
        return self._last_step

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics that some step has."""
        return sorted(self._columns)

    def last(self, name: str) -> float | None:
        """The latest value of a statistic."""
        values = self._values(name)
        present = np.flatnonzero(~np.isnan(values))
        return float(values[present[-1]]) if len(present) else None

    def points(self, wanted: list[str], *, first: int, last: int, limit: int) -> Points:
        """``wanted`` statistics of the steps ``first`` to ``last``, in at most ``limit`` points."""
        steps = self._steps.head(self._rows)
        begin, end = np.searchsorted(steps, [first, last + 1])
        chosen = steps[begin:end].astype(int)
        values = {name: self._values(name)[begin:end] for name in wanted if name in self._columns}
        if len(chosen) <= limit:
            return Points(chosen.tolist(), {name: _plain(column) for name, column in values.items()}, {}, {})
        edges = np.linspace(0, len(chosen), limit + 1).astype(int)
        thinned = {name: _thin(column, edges) for name, column in values.items()}
        return Points(
            chosen[edges[1:] - 1].tolist(),
            {name: parts[0] for name, parts in thinned.items()},
            {name: parts[1] for name, parts in thinned.items()},
            {name: parts[2] for name, parts in thinned.items()},
        )

    def changed_rows(self, name: str) -> list[tuple[int, float]]:
        """Step and new value wherever a statistic differs from the step before it that has it."""
        values = self._values(name)
        present = np.flatnonzero(~np.isnan(values))
        kept = values[present]
        differs = np.flatnonzero(np.diff(kept, prepend=0.0))
        steps = self._steps.head(self._rows)
        return [(int(steps[present[index]]), float(kept[index])) for index in differs]

    def _values(self, name: str) -> Floats:
        column = self._columns.get(name)
        return column.head(self._rows) if column is not None else np.full(self._rows, np.nan)

    def add(self, line: run_files.Line) -> None:
        """Add the statistics of a step."""
        step = line["step"]
        if step <= self._last_step and self._rows:
            self._cut(int(np.searchsorted(self._steps.head(self._rows), step)))
        if self._rows >= MAX_STEPS:
            return
        initial = run_files.value(line, stat_names.EVAL_REWARD_INITIAL)
        if initial is not None and not self._rows and (column := self._column_of(stat_names.EVAL_REWARD)) is not None:
            self._steps.put(0, step - 1)  # the evaluation before the first step
            column.put(0, initial)
            self._rows = 1
        row, by_key = self._rows, self._by_key
        self._steps.put(row, step)
        for key, value in line.items():
            if (column := by_key.get(key) or self._column_of(key)) is not None and -MAX_SHOWN <= value <= MAX_SHOWN:
                column.put(row, value)
        length, prompt = (
            run_files.value(line, stat_names.SEQUENCE_LENGTH),
            run_files.value(line, stat_names.PROMPT_LENGTH),
        )
        if length is not None and prompt is not None:
            self._put_completion_length(row, np.array([length - prompt]))
        self._rows, self._last_step = row + 1, step

    def add_rows(self, keys: Sequence[str], values: Floats) -> bool:
        """Add the statistics ``keys`` of several steps. [steps, keys], NaN where a step lacks one.

        Returns False, and adds nothing, if they are not whole lines of steps in their order after the last one.
        """
        if not self._rows or "step" not in keys or "time" not in keys:
            return False
        steps = values[:, keys.index("step")]
        in_order = steps[0] > self._last_step and (np.diff(steps) > 0).all() and steps[-1] <= run_files.MAX_STEP
        if not (in_order and (steps == np.floor(steps)).all() and np.isfinite(values[:, keys.index("time")]).all()):
            return False
        values = values[: MAX_STEPS - self._rows]
        if not len(values):
            return True
        row = self._rows
        self._steps.put_rows(row, values[:, keys.index("step")])
        shown = np.where(np.abs(values) <= MAX_SHOWN, values, np.nan)
        for at in np.flatnonzero(~np.isnan(values).all(axis=0)):
            key = keys[at]
            if (column := self._by_key.get(key) or self._column_of(key)) is not None:
                column.put_rows(row, shown[:, at])
        length, prompt = (
            _first_known(keys, values, name) for name in (stat_names.SEQUENCE_LENGTH, stat_names.PROMPT_LENGTH)
        )
        if not np.isnan(length - prompt).all():
            self._put_completion_length(row, length - prompt)
        self._rows, self._last_step = row + len(values), int(values[-1, keys.index("step")])
        return True

    def _put_completion_length(self, row: int, values: Floats) -> None:
        column = self._column_of(COMPLETION_LENGTH)
        if column is not None and len(column) <= row:  # else the file itself has it
            column.put_rows(row, values)

    def _column_of(self, key: str) -> _Column | None:
        """The column of a statistic; None for what is not shown. Of two keys with one name the first has it."""
        name = shown_name(key)
        if key in HIDDEN or name in self._columns or len(self._columns) >= MAX_COLUMNS:
            return self._by_key.get(key)
        self._columns[name] = self._by_key[key] = _Column()
        return self._columns[name]

    def _cut(self, rows: int) -> None:
        self.changes += 1
        self._rows = rows
        for column in [self._steps, *self._columns.values()]:
            column.cut(rows)

    def clear(self) -> None:
        """Drop all steps."""
        self.changes += self._rows > 0
        self._columns, self._by_key, self._steps = {}, {}, _Column()
        self._rows, self._last_step = 0, 0


class StatsTable(ColumnTable):
    """The columns of a growing stats.jsonl.

    ``damaged`` counts lines that were skipped, ``problem`` says why the file cannot be read.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.damaged = 0
        self.problem: str | None = None
        self._path = names.stats_file(run)
        self._offset = 0
        self._inode = 0

    def poll(self) -> bool:
        """Read the next part of the file; whether there is more to read."""
        try:
            with opened(self._path) as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._forget(status.st_ino)
                data = os.pread(file.fileno(), CHUNK_BYTES, self._offset)
        except FileNotFoundError:
            self._forget(0)
            self.problem = None
            return False
        except (DamagedFileError, OSError) as error:
            self.problem = str(error)
            return False
        self.problem = None
        end = data.rfind(b"\n") + 1
        if not end and len(data) > MAX_LINE_BYTES:
            end = len(data)  # an endless line
            self.damaged += 1
        else:
            self._add_texts(data[:end].splitlines())
        self._offset += end
        return end > 0 and self._offset < status.st_size

    def _add_texts(self, texts: list[bytes]) -> None:
        lines = [(text, _parsed(text)) for text in texts]
        for names_of_line, group in groupby(lines, key=lambda line: tuple(line[1])):
            same = list(group)
            if not len(self):
                self._add_text(same.pop(0)[0])
            values = _matrix([line for _, line in same]) if names_of_line and len(same) >= MIN_ROWS else None
            if values is None or not self.add_rows(names_of_line, values):
                for text, _ in same:
                    self._add_text(text)

    def _add_text(self, text: bytes) -> None:
        line = parse_line(text)
        if line is None:
            self.damaged += bool(text.strip())
        else:
            self.add(line)

    def _forget(self, inode: int) -> None:
        self.clear()
        self._offset, self._inode, self.damaged = 0, inode, 0


def _parsed(text: bytes) -> run_files.Line:
    """The content of an ordinary line; empty for one that ``parse_line`` has to look at."""
    import orjson  # a page without run directories does not need it

    try:
        content = orjson.loads(text) if len(text) <= MAX_LINE_BYTES else None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _matrix(lines: list[run_files.Line]) -> Floats | None:
    """The values of lines with the same names; None if one is neither a number nor null. [lines, names]"""
    values = list(chain.from_iterable(line.values() for line in lines))
    if not set(map(type, values)) <= {float, int, type(None)}:
        return None
    return np.array(values, dtype=np.float64).reshape(len(lines), -1)


def _first_known(keys: Sequence[str], values: Floats, name: str) -> Floats:
    """Like ``run_files.value`` for several lines; NaN where there is no value. [lines]"""
    found = np.full(len(values), np.nan)
    for key in run_files.spellings(name):
        if key in keys:
            found = np.where(np.isnan(found), values[:, keys.index(key)], found)
    return found


def _plain(column: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in column]


def _thin(column: Floats, edges: NDArray[np.int64]) -> tuple[list[float | None], ...]:
    present = ~np.isnan(column)
    count = np.add.reduceat(present.astype(int), edges[:-1])
    mean = np.add.reduceat(np.where(present, column, 0.0), edges[:-1]) / np.maximum(count, 1)
    low = np.minimum.reduceat(np.where(present, column, np.inf), edges[:-1])
    high = np.maximum.reduceat(np.where(present, column, -np.inf), edges[:-1])
    return tuple(
        [float(value) if there else None for value, there in zip(part, count > 0, strict=True)]
        for part in (mean, low, high)
    )
