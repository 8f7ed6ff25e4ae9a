"""What a run has written about itself: stats.jsonl, summary.json and, from the launcher, local.json."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from areal_api import names

Line = dict[str, Any]

REWARD = "task_reward"
EVALUATION = "eval-rollout/reward"
EVALUATION_INITIAL = "eval-rollout/reward_initial"  # before the first step, told with it
STALENESS = "staleness"
STALENESS_MAX = "staleness/max"
ENTROPY = "entropy"
TOKENS_PER_SECOND = "tokens_per_second"
TOTAL_STEPS = "total_steps"


def value(line: Line, name: str) -> float | None:
    """A statistic by its name, with or without AReaL's prefix (``grpo_actor/``) and ``/avg``; None where it is not."""
    for key in (name, f"{name}/avg", f"grpo_actor/{name}", f"grpo_actor/{name}/avg"):
        found = line.get(key)
        if isinstance(found, int | float):
            return float(found)
    return None


def completion_length(line: Line) -> float | None:
    """Mean number of generated tokens."""
    length, prompt = value(line, "seq_len"), value(line, "prompt_len")
    if length is None or prompt is None:
        return None
    return length - prompt


def evaluations(lines: list[Line]) -> list[tuple[int, float]]:
    """Steps after which the policy was evaluated, 0 for before the first, and its rewards."""
    found: list[tuple[int, float]] = []
    for line in lines:
        step = int(line["step"])
        for at, name in ((step - 1, EVALUATION_INITIAL), (step, EVALUATION)):
            reward = value(line, name)
            if reward is not None:
                found.append((at, reward))
    return found


@dataclass
class Stats:
    """The lines of a growing stats.jsonl, one a step; a step that is written again replaces the earlier line."""

    path: Path
    by_step: dict[int, Line] = field(default_factory=dict)
    _offset: int = 0
    _inode: int = 0

    def poll(self) -> list[Line]:
        """Read what was added; the new lines."""
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
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        added = [json.loads(text) for text in data[:whole].splitlines() if text.strip()]
        for line in added:
            self.add(line)
        return added

    def add(self, line: Line) -> None:
        """Take a line. A resumed run goes back to its recovery checkpoint: steps after it are trained again."""
        for later in [step for step in self.by_step if step > line["step"]]:
            del self.by_step[later]
        self.by_step[line["step"]] = line

    @property
    def lines(self) -> list[Line]:
        """All lines by step."""
        return [self.by_step[step] for step in sorted(self.by_step)]

    def last(self, name: str) -> float | None:
        """The newest value of a statistic that not every step has."""
        return next((found for line in reversed(self.lines) if (found := value(line, name)) is not None), None)

    def first(self, name: str) -> float | None:
        """The oldest value of a statistic."""
        return next((found for line in self.lines if (found := value(line, name)) is not None), None)


def read_stats(run: Path) -> Stats:
    """Everything in the stats.jsonl of a run."""
    stats = Stats(names.stats_file(run))
    stats.poll()
    return stats


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json, or None while there is none."""
    try:
        text = names.summary_file(run).read_text()
    except FileNotFoundError:
        return None
    return dict(json.loads(text))


def state_file(run: Path) -> Path:
    """What the launcher knows of its servers."""
    return run / "local.json"


def read_state(run: Path) -> dict[str, Any]:
    """What the launcher last wrote."""
    return dict(json.loads(state_file(run).read_text()))


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file so that a reader sees the old content or the new one."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.replace(path)


def cluster_file(run: Path) -> Path:
    """In a directory that holds what was fetched from a cluster: where the run was."""
    return run / "cluster.json"


def read_cluster(run: Path) -> dict[str, str] | None:
    """Where the run of this directory was, when it was in a cluster: context, namespace, name, claim, directory."""
    try:
        text = cluster_file(run).read_text()
    except FileNotFoundError:
        return None
    return dict(json.loads(text))


def lock_file(run: Path) -> Path:
    """Held, as a file lock, by the launcher of a run, whose process id it holds."""
    return run / "launcher.lock"


def launcher_pid(run: Path) -> int | None:
    """Process id of the launcher that is at work in this run directory; None when there is none."""
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
    """The right to work in a run directory; ``ValueError`` while another launcher has it. A death frees it."""

    def __init__(self, run: Path) -> None:
        self._file = lock_file(run).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"another grpo run (process {launcher_pid(run)}) is at work in {run}; "
                "stop it or choose another trial_name"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def release(self) -> None:
        """Let another launcher work here."""
        self._file.close()
