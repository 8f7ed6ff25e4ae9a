"""What runs on a node: an actor that starts a process there, and ends with it. It decides nothing about a run.

Standard library and the launcher's core only. Three things keep processes from outliving their run:

- The process runs under a guarded supervisor, whose pipe closes with the actor: Ray ends the actor when the driver, the
  raylet or the head node is gone, and then everything below the supervisor is killed.
- The supervisor is guarded because Ray kills the direct children of an actor that ends.
- The supervisors hold a lock file in the run directory. A successor on any node starts only when it is free, so that
  two trainers never write to one directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from areal_launcher.core.environment import child_environment
from areal_launcher.core.place import ProcessSpec
from areal_launcher.core.processes import GUARDED, ReservedPort, SupervisedProcess
from areal_launcher.core.supervisor import CANNOT_START
from areal_launcher.places.ray import node_code

PYTHON = "@python@"  # in a command: the interpreter of the node's Ray
SHARED_WAIT_S = 10.0  # for another node's new file to appear; network file systems cache directories
LOCK_WAIT_S = 150.0  # for what is left of a predecessor; Ray ends the actors of a node that it cannot reach within 60 s
PORTS_TRIED = 1000
POLL_S = 0.1


class NodeError(Exception):
    """A node on which the process cannot run; the text is for the user."""


@dataclass(frozen=True)
class Requirements:
    """What a node must offer."""

    run: Path
    probe: str  # name of a file in the run directory that the driver has just written
    directory: Path  # working directory of the process
    paths: Sequence[str]  # local files and directories that the process reads
    package: str  # that the process runs
    code: Mapping[str, str]  # ``node_code.describe`` of the driver


@dataclass(frozen=True)
class Started:
    """A process that runs."""

    address: str | None
    log_start: int  # size of its log when it started


class Agent:
    """Starts one process at a time on its node. Calls may overlap: Ray gives each a thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._generation = 0
        self._process: SupervisedProcess | None = None
        self._ports = contextlib.ExitStack()

    def check(self, wanted: Requirements) -> str:
        """Raise ``NodeError`` unless the node offers what is required; the node's name."""
        node = ray.util.get_node_ip_address()
        check_shared(wanted, node)
        if not wanted.directory.is_dir():
            raise NodeError(f"node {node}: no directory {wanted.directory}, where grpo was started; share it")
        os.chdir(wanted.directory)
        for path in wanted.paths:
            if not Path(path).exists():
                raise NodeError(f"node {node}: {path} does not exist there; put it on the shared file system")
        if (problem := node_code.problem(wanted.code, node_code.describe(), wanted.package)) is not None:
            raise NodeError(problem)
        return node

    def start(self, generation: int, spec: ProcessSpec, wanted: Requirements, first_port: int | None) -> Started:
        """Start the process once nothing of its predecessor runs. Raises ``NodeError``."""
        process = None
        try:
            process, address = self._start(spec, wanted, first_port)
        finally:
            with self._changed:
                self._process, self._generation = process, generation
                self._changed.notify_all()
        return Started(address, process.log_start)

    def wait(self, generation: int) -> int:
        """Wait for the start with this number, and for the end of its process; the exit status."""
        with self._changed:
            self._changed.wait_for(lambda: self._generation >= generation)
            process = self._process
        if process is None:
            return CANNOT_START
        while (status := process.wait(3600.0)) is None:
            pass
        return status

    def terminate(self) -> None:
        """Send SIGTERM to the command."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Begin to kill the command and its descendants."""
        if self._process is not None:
            self._process.kill()

    def _start(
        self, spec: ProcessSpec, wanted: Requirements, first_port: int | None
    ) -> tuple[SupervisedProcess, str | None]:
        node = self.check(wanted)
        self._ports.close()
        address = None
        if spec.needs_port:
            port = self._reserve(node, first_port)
            address, spec = f"{node}:{port}", spec.at(node, port)
        argv = [sys.executable if word == PYTHON else word for word in spec.argv]
        env = child_environment({**os.environ, **no_proxy(node)}, spec.env)
        with exclusive(wanted.run, spec.name, node) as lock:
            process = SupervisedProcess(argv, env=env, log=spec.log, supervisor=GUARDED, keep_open=[lock])
        return process, address

    def _reserve(self, node: str, first: int | None) -> int:
        """Reserve a port until the next start: a free one, or the first free one from ``first`` on."""
        candidates = [0] if first is None else range(first, min(first + PORTS_TRIED, 2**16))
        for number in candidates:
            with contextlib.suppress(ValueError):
                port = ReservedPort(node, number)
                self._ports.callback(port.release)
                return port.number
        raise NodeError(f"node {node}: no free port from {first} on; choose another --port")


def check_shared(wanted: Requirements, node: str) -> None:
    """Raise ``NodeError`` unless the driver's probe file is here and this node can add a file beside it."""
    deadline = time.monotonic() + SHARED_WAIT_S
    while not (wanted.run / wanted.probe).exists():
        if time.monotonic() > deadline:
            raise NodeError(
                f"node {node}: {wanted.run} is not the directory that grpo sees; set cluster.fileroot to a directory "
                "that all nodes share"
            )
        time.sleep(POLL_S)
    answer = wanted.run / f"{wanted.probe}.{secrets.token_hex(8)}"
    try:
        answer.write_text(node)
        answer.unlink()
    except OSError as error:
        raise NodeError(f"node {node}: cannot write to {wanted.run} ({error.strerror}); check its owner") from error


@contextlib.contextmanager
def exclusive(run: Path, name: str, node: str) -> Iterator[int]:
    """The descriptor of a locked file, free once every process that inherits it has ended. Raises ``NodeError``."""
    path = run / "locks" / name
    path.parent.mkdir(exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                holder = os.pread(lock, 256, 0).decode(errors="replace")
                raise NodeError(f"{name} still runs on node {holder or 'unknown'}; end it there")
            time.sleep(POLL_S)
        os.ftruncate(lock, 0)
        os.pwrite(lock, node.encode(), 0)
        yield lock
    finally:
        os.close(lock)


def no_proxy(node: str) -> dict[str, str]:
    """The variables that let a process on this node reach itself without a proxy."""
    return {
        name: ",".join(filter(None, [os.environ.get(name, ""), node]))
        for name in ("no_proxy", "NO_PROXY")
        if os.environ.get(name) or any(key.lower().endswith("_proxy") for key in os.environ)
    }
