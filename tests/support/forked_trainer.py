"""Trainers that start instantly and are killed at a given call: forks of a process with all imports done.

``ForkedTrainer().run(environment, kill)`` runs ``areal_trainer.train`` in a fresh fork and returns its exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WAIT_FOR_CHECKPOINTS = "WAIT_FOR_CHECKPOINTS"  # environment variable of a trainer, with any value


@dataclass(frozen=True)
class Kill:
    """Send a signal at the ``call``-th call (from 1) of ``function``, e.g. ``os.fsync``, before it runs."""

    function: str
    call: int
    number: int = signal.SIGKILL


class ForkedTrainer:
    """Context manager for the forking process."""

    def __enter__(self) -> Self:
        tests = str(Path(__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.forked_trainer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(
                os.environ, PYTHONPATH=os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]), OMP_NUM_THREADS="1"
            ),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, environment: dict[str, str], kill: Kill | None = None, *, log: Path) -> int:
        """Run one trainer; return its exit status, negative for a signal. Its output is appended to ``log``."""
        request = {"environment": environment, "kill": asdict(kill) if kill else None, "log": str(log)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _serve() -> None:
    from areal_trainer import train

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_train(train, request))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _train(train: Any, request: dict[str, Any]) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    if WAIT_FOR_CHECKPOINTS in os.environ:
        _wait_for_checkpoints()
    if request["kill"] is not None:
        _arm(**request["kill"])
    return int(train.main([]))


def _wait_for_checkpoints() -> None:
    """Make every step wait until its recovery checkpoint is complete, so that none is postponed."""
    from areal_trainer.recovery_writer import RecoveryWriter

    start = RecoveryWriter.start

    def waiting(self: RecoveryWriter, *arguments: Any, **keywords: Any) -> None:
        start(self, *arguments, **keywords)
        self.wait()

    RecoveryWriter.start = waiting  # type: ignore[method-assign]


def _arm(function: str, call: int, number: int) -> None:
    owner_name, _, name = function.rpartition(".")
    try:
        owner = importlib.import_module(owner_name)
    except ModuleNotFoundError:
        module, _, klass = owner_name.rpartition(".")
        owner = getattr(importlib.import_module(module), klass)
    original, left = getattr(owner, name), call

    def deadly(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    _serve()
