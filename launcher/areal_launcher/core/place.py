"""The interface between a run and the place that executes it.

``run.Run`` decides what to start, when a server is ready or dead, when the trainer is restarted, and what is reported.
A place implements ``Place.start`` and ``Process``, and nothing else of a run. It chooses the node, the port and the
GPUs of each process. To add a place:

1. Write ``places/<name>/place.py`` with a class that satisfies ``Place``.
2. Write ``places/<name>/cli.py``, whose ``PLACE`` defines the commands that differ there. ``run`` loads the experiment,
   enters ``prepare.claimed_run`` (checks, lock, files, API key), builds the plan with ``plan.plan_run`` and calls
   ``Run(plan, place, display).run()``.
3. Add the folder to the packages in ``pyproject.toml``.

The run directory is on a file system that all nodes share: logs, configuration, API key and weights are read there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

Role = Literal["server", "trainer"]

# Arguments and values of variables that are known only once the process has a node. Each stands alone in its word.
HOST = "@host@"
PORT = "@port@"
SERVERS = "@servers@"


@dataclass(frozen=True)
class ProcessSpec:
    """A server, or one node of the trainer.

    ``HOST`` and ``PORT`` in ``argv`` stand for the address at which the process listens: of a server its HTTP address,
    of the trainer's first node torchrun's rendezvous. A process whose ``argv`` has no ``PORT`` needs none.
    """

    role: Role
    index: int
    argv: Sequence[str]
    env: Mapping[str, str]  # additions to the environment of the place
    log: Path  # absolute; the process's output is appended to it
    gpus: int = 0  # on one node

    @property
    def name(self) -> str:
        """``server-0``, …; ``trainer``, ``trainer-1``, …"""
        return self.role if self.role == "trainer" and self.index == 0 else f"{self.role}-{self.index}"

    @property
    def needs_port(self) -> bool:
        """Whether the process listens at an address that its place chooses."""
        return PORT in self.argv

    def at(self, host: str, port: int) -> ProcessSpec:
        """The process with an address in place of ``HOST`` and ``PORT``."""
        return self._substitute({HOST: host, PORT: str(port)})

    def with_servers(self, addresses: Sequence[str]) -> ProcessSpec:
        """The process with the servers' addresses in place of ``SERVERS``."""
        return self._substitute({SERVERS: ",".join(addresses)})

    def _substitute(self, values: Mapping[str, str]) -> ProcessSpec:
        argv = [values.get(word, word) for word in self.argv]
        return replace(self, argv=argv, env={name: values.get(text, text) for name, text in self.env.items()})


class Process(Protocol):
    """A process that a place has started. Methods return at once unless stated."""

    @property
    def spec(self) -> ProcessSpec:
        """What was started, as given to ``Place.start``."""
        ...

    @property
    def address(self) -> str | None:
        """``host:port``, reachable from every node; None until the node has chosen it, or if it needs no port."""
        ...

    @property
    def lost(self) -> bool:
        """Whether it has ended because its node was lost or took it away, not by itself."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        ...

    def poll(self) -> int | None:
        """Exit status, 128 + n for signal n; None while any process of the command runs."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM to the command, but not to its descendants. Repeated calls have no effect."""
        ...

    def kill(self) -> None:
        """Begin to kill the command and all its descendants."""
        ...

    def wait(self, timeout_s: float) -> int | None:
        """Wait; the exit status, or None if the command still runs after ``timeout_s``."""
        ...

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines that were logged since this start."""
        ...


class Place(Protocol):
    """Where a run executes. A place never restarts a process: the run starts it again with the same specification."""

    def start(self, spec: ProcessSpec) -> Process:
        """Start a process. Nothing of an earlier process of the same name may run any more when the command begins.

        A process that cannot be placed yet waits: ``poll`` returns None, and so does ``address``. Raises ``RunError``
        if it never can be.
        """
        ...

    def ending(self) -> str | None:
        """Why the place is about to take away every process, as at preemption; None if it is not. May take a minute.

        The run asks before it takes a process that has ended for a failed one. It then ends as on SIGTERM.
        """
        ...

    def close(self) -> None:
        """Kill whatever still runs and wait for it; release all resources."""
        ...


def kill_all(processes: Sequence[Process], *, timeout_s: float = 35.0) -> None:
    """Kill processes at the same time and wait for all of them, for at most ``timeout_s``."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.kill()
    deadline = time.monotonic() + timeout_s
    for process in running:
        process.wait(max(0.0, deadline - time.monotonic()))
