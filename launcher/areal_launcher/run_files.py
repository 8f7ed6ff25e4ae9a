"""Reads and writes the files of a run directory, and locks it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from areal_api import names, stat_names
from areal_api.stat_names import ACTOR_PREFIX, mean
from areal_launcher.bounded_files import (
    DamagedFileError,
    number,
    opened,
    parse_json,
    read_object,
    read_tail,
)

Line = dict[str, Any]

MAX_LINE_BYTES = 2**20  # a line of statistics has a few kilobytes
MAX_POLL_BYTES = 128 * 2**20  # of a longer stats.jsonl only the end is read
MAX_STEP = 2**53
MAX_LOCK_BYTES = 32
CLUSTER_KEYS = ("context", "namespace", "name", "claim", "directory")


def spellings(name: str) -> tuple[str, ...]:
    """The names that a statistic can have in a line: with or without AReaL's prefix (``grpo_actor/``) and ``/avg``."""
    return name, mean(name), f"{ACTOR_PREFIX}{name}", mean(f"{ACTOR_PREFIX}{name}")


def value(line: Line, name: str) -> float | None:
    """A statistic, with or without AReaL's prefix (``grpo_actor/``) and ``/avg``; None if the line lacks it."""
    for key in spellings(name):
        if (statistic := number(line.get(key))) is not None:
            return statistic
    return None


def values(lines: list[Line], name: str) -> list[float]:
    """A statistic of every line that has it."""
    return [statistic for line in lines if (statistic := value(line, name)) is not None]


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


def parse_line(text: bytes) -> Line | None:
    """The numbers of one line of stats.jsonl; None if the line is damaged or has no step and time."""
    try:
        content = parse_json(text) if len(text) <= MAX_LINE_BYTES else None
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    line: Line = {
        name: statistic
        for name, raw in content.items()
        if (statistic := raw if type(raw) is float and isfinite(raw) else number(raw)) is not None
    }
    if not 0 <= line.get("step", -1) <= MAX_STEP or "time" not in line:
        return None
    return {**line, "step": int(line["step"])}


@dataclass
class Stats:
    """The lines of a growing stats.jsonl, one per step. A step that is written again replaces the earlier line.

    ``damaged`` counts lines that were skipped because they are not statistics.
    """

    path: Path
    by_step: dict[int, Line] = field(default_factory=dict)
    damaged: int = 0
    _offset: int = 0
    _inode: int = 0

    def poll(self) -> list[Line]:
        """Read and return the lines added since the last call. Raises ``DamagedFileError`` like ``opened``."""
        try:
            with opened(self.path) as file:
                data = self._read_added(file.fileno())
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        if not end and len(data) > MAX_LINE_BYTES:
            self._offset += len(data)  # an endless line
        added: list[Line] = []
        for text in data[:end].splitlines():
            line = parse_line(text)
            if line is not None:
                self.add(line)
                added.append(line)
            elif text.strip():
                self.damaged += 1
        return added

    def _read_added(self, descriptor: int) -> bytes:
        status = os.fstat(descriptor)
        if status.st_ino != self._inode or status.st_size < self._offset:
            self.by_step, self._offset, self._inode, self.damaged = {}, 0, status.st_ino, 0
        if status.st_size - self._offset > MAX_POLL_BYTES:
            self._offset = status.st_size - MAX_POLL_BYTES
            partial = os.pread(descriptor, MAX_LINE_BYTES, self._offset).find(b"\n") + 1
            self._offset += partial
        chunks: list[bytes] = []
        at = self._offset
        while at < status.st_size and (chunk := os.pread(descriptor, min(2**24, status.st_size - at), at)):
            chunks.append(chunk)
            at += len(chunk)
        return b"".join(chunks)

    def add(self, line: Line) -> None:
        """Add a line and drop later steps: a run resumed from a recovery checkpoint trains them again."""
        step = line["step"]
        if self.by_step and step <= next(reversed(self.by_step)):
            for later in [other for other in self.by_step if other >= step]:
                del self.by_step[later]
        self.by_step[step] = line

    @property
    def lines(self) -> list[Line]:
        """All lines by step."""
        return list(self.by_step.values())

    def last(self, name: str) -> float | None:
        """The latest value of a statistic that not every step has."""
        newest = (value(line, name) for line in reversed(self.by_step.values()))
        return next((statistic for statistic in newest if statistic is not None), None)


def read_last_lines(path: Path, limit: int = 2**17) -> list[bytes]:
    """The whole lines in the last ``limit`` bytes of a file; raises like ``bounded_files.opened``."""
    return read_tail(path, limit).splitlines()


def read_stats(run: Path) -> Stats:
    """The stats.jsonl of a run."""
    stats = Stats(names.stats_file(run))
    stats.poll()
    return stats


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json, or None if it does not exist yet. Raises ``DamagedFileError``."""
    return read_object(names.summary_file(run))


def require_run(directory: Path) -> Path:
    """``directory`` if it is a run directory, else ``ValueError``."""
    if not os.path.isfile(names.config_file(directory)):
        raise ValueError(f"{directory}: no run here (no {names.config_file(directory).name}); give a run directory")
    return directory


def experiment_file(run: Path) -> Path:
    """The experiment of the run."""
    return run / "experiment.yaml"


def state_file(run: Path) -> Path:
    """The state of the servers, written by the launcher."""
    return run / "local.json"


def read_servers(run: Path) -> list[dict[str, str]]:
    """Name, address, state and restarts of every server as the launcher last wrote them; empty if unknown."""
    try:
        servers = (read_object(state_file(run)) or {}).get("servers")
    except DamagedFileError:
        return []
    if not isinstance(servers, list):
        return []
    keys = ("name", "address", "state", "restarts")
    return [{key: str(server.get(key, "?")) for key in keys} for server in servers if isinstance(server, dict)]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: readers see either the old or the new content.

    The mode follows the umask. A symbolic link planted under the temporary name is not followed.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(partial, flags, 0o666), "wb") as file:
            file.write(data)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def cluster_file(run: Path) -> Path:
    """Where the run was, in a directory of results fetched from a cluster."""
    return run / "cluster.json"


def read_cluster(run: Path) -> dict[str, str] | None:
    """Context, namespace, name, claim and directory of a run fetched from a cluster; None for a local run.

    Raises ``DamagedFileError``.
    """
    source = read_object(cluster_file(run))
    return None if source is None else {key: str(source.get(key, "?")) for key in CLUSTER_KEYS}


def lock_file(run: Path) -> Path:
    """Locked with flock(2) by the launcher of the run; contains its process id."""
    return run / "launcher.lock"


def launcher_pid(run: Path) -> int | None:
    """Process id of the launcher that holds the run directory, 0 if it cannot be read; None if there is none."""
    try:
        with opened(lock_file(run)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read(MAX_LOCK_BYTES)
                return int(text) if text.isdigit() else 0
    except FileNotFoundError:
        pass
    return None


def scale_file(run: Path) -> Path:
    """A request of `grpo scale` to the launcher, which removes it."""
    return run / "scale.json"


def request_scale(run: Path, replicas: int) -> None:
    """Ask the launcher of the run for ``replicas`` servers."""
    write_atomic(scale_file(run), json.dumps({"replicas": replicas}))


def take_scale_request(run: Path) -> int | None:
    """The number of servers that `grpo scale` asks for; None without a request. A damaged request is dropped."""
    try:
        request = read_object(scale_file(run))
        if request is not None:
            scale_file(run).unlink(missing_ok=True)
    except (DamagedFileError, OSError):
        return None
    replicas = (request or {}).get("replicas")
    return replicas if isinstance(replicas, int) and not isinstance(replicas, bool) else None


def stop_file(run: Path) -> Path:
    """Asks the launcher of the run to end."""
    return run / "stop.json"


def request_stop(run: Path, *, now: bool) -> None:
    """Ask the launcher of the run to end; ``now``: without a recovery checkpoint."""
    write_atomic(stop_file(run), json.dumps({"now": now}))


def take_stop_request(run: Path) -> bool | None:
    """Whether `grpo stop` asks to end at once; None without a request. A damaged request is dropped."""
    try:
        request = read_object(stop_file(run))
        if request is not None:
            stop_file(run).unlink(missing_ok=True)
    except (DamagedFileError, OSError):
        return None
    return None if request is None else request.get("now") is True


class RunLock:
    """Exclusive use of a run directory. The kernel releases it if the launcher dies, so it is never stale.

    Raises ``ValueError`` while another launcher holds it, or if the file system has no locks.
    """

    def __init__(self, run: Path) -> None:
        path = lock_file(run)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = os.fdopen(os.open(path, flags, 0o666), "r+b")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(f"cluster.fileroot: cannot open {path}: {error.strerror}; remove it") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"another grpo run (process {launcher_pid(run)}) uses {run}; stop it or choose another trial_name"
            ) from error
        except OSError as error:
            self._file.close()
            raise ValueError(
                f"cluster.fileroot: {run} is on a file system without locks ({error.strerror}); "
                "set cluster.fileroot to another one"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def release(self) -> None:
        """Release the lock."""
        self._file.close()
