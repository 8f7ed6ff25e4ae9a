"""Reads and writes the files of a run directory, and locks it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from areal_api import names, stat_names
from areal_api.stat_names import ACTOR_PREFIX, mean

Line = dict[str, Any]


def value(line: Line, name: str) -> float | None:
    """A statistic, with or without AReaL's prefix (``grpo_actor/``) and ``/avg``; None if the line lacks it."""
    for key in (name, mean(name), f"{ACTOR_PREFIX}{name}", mean(f"{ACTOR_PREFIX}{name}")):
        number = line.get(key)
        if isinstance(number, int | float):
            return float(number)
    return None


def values(lines: list[Line], name: str) -> list[float]:
    """A statistic of every line that has it."""
    return [number for line in lines if (number := value(line, name)) is not None]


def completion_length(line: Line) -> float | None:
    """Mean number of generated tokens."""
    length, prompt = value(line, stat_names.SEQUENCE_LENGTH), value(line, stat_names.PROMPT_LENGTH)
    if length is None or prompt is None:
        return None
    return length - prompt


def evaluations(lines: list[Line]) -> list[tuple[int, float]]:
    """Step and reward of each evaluation; step 0 is the evaluation before training."""
    points: list[tuple[int, float]] = []
    for line in lines:
        step = int(line["step"])
        for at, name in ((step - 1, stat_names.EVAL_REWARD_INITIAL), (step, stat_names.EVAL_REWARD)):
            reward = value(line, name)
            if reward is not None:
                points.append((at, reward))
    return points


@dataclass
class Stats:
    """The lines of a growing stats.jsonl, one per step. A step that is written again replaces the earlier line."""

    path: Path
    by_step: dict[int, Line] = field(default_factory=dict)
    _offset: int = 0
    _inode: int = 0

    def poll(self) -> list[Line]:
        """Read and return the lines added since the last call."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self.by_step, self._offset, self._inode = {}, 0, status.st_ino
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        added = [json.loads(text) for text in data[:end].splitlines() if text.strip()]
        for line in added:
            self.add(line)
        return added

    def add(self, line: Line) -> None:
        """Add a line and drop later steps: a run resumed from a recovery checkpoint trains them again."""
        for later in [step for step in self.by_step if step > line["step"]]:
            del self.by_step[later]
        self.by_step[line["step"]] = line

    @property
    def lines(self) -> list[Line]:
        """All lines by step."""
        return [self.by_step[step] for step in sorted(self.by_step)]

    def last(self, name: str) -> float | None:
        """The latest value of a statistic that not every step has."""
        return next((number for line in reversed(self.lines) if (number := value(line, name)) is not None), None)


def read_stats(run: Path) -> Stats:
    """The stats.jsonl of a run."""
    stats = Stats(names.stats_file(run))
    stats.poll()
    return stats


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json, or None if it does not exist yet."""
    try:
        text = names.summary_file(run).read_text()
    except FileNotFoundError:
        return None
    return dict(json.loads(text))


def require_run(directory: Path) -> Path:
    """``directory`` if it is a run directory, else ``ValueError``."""
    if not names.config_file(directory).is_file():
        raise ValueError(f"{directory}: no run here (no {names.config_file(directory).name}); give a run directory")
    return directory


def experiment_file(run: Path) -> Path:
    """The experiment of the run."""
    return run / "experiment.yaml"


def state_file(run: Path) -> Path:
    """The state of the servers, written by the launcher."""
    return run / "local.json"


def read_state(run: Path) -> dict[str, Any]:
    """The last state that the launcher wrote."""
    return dict(json.loads(state_file(run).read_text()))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: readers see either the old or the new content."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def cluster_file(run: Path) -> Path:
    """Where the run was, in a directory of results fetched from a cluster."""
    return run / "cluster.json"


def read_cluster(run: Path) -> dict[str, str] | None:
    """Context, namespace, name, claim and directory of a run fetched from a cluster; None for a local run."""
    try:
        text = cluster_file(run).read_text()
    except FileNotFoundError:
        return None
    return dict(json.loads(text))


def lock_file(run: Path) -> Path:
    """Locked with flock(2) by the launcher of the run; contains its process id."""
    return run / "launcher.lock"


def launcher_pid(run: Path) -> int | None:
    """Process id of the launcher that holds the run directory; None if there is none."""
    try:
        file = lock_file(run).open("rb")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or b"0")
    return None


class RunLock:
    """Exclusive use of a run directory. The kernel releases it if the launcher dies.

    Raises ``ValueError`` while another launcher holds it.
    """

    def __init__(self, run: Path) -> None:
        self._file = lock_file(run).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"another grpo run (process {launcher_pid(run)}) uses {run}; stop it or choose another trial_name"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def release(self) -> None:
        """Release the lock."""
        self._file.close()
