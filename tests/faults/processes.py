"""The processes of a local run, found from outside, and what is done to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

import psutil

T = TypeVar("T")
MARK = "AREAL_FAULTS_RUN"  # in the environment of everything that descends from a launcher under test
DEATH_S = 20.0


def supervised(launcher: int, *words: str) -> list[psutil.Process]:
    """The supervisor whose command line holds ``words``, then what it runs: the command itself, then the rest."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(launcher).children():
            line = command_line(child)
            if "supervisor.py" in line and all(f" {word} " in f" {line} " for word in words):
                return [child, *child.children(recursive=True)]
    return []


def server(launcher: int, index: int) -> list[psutil.Process]:
    """Supervisor and processes of a server."""
    return supervised(launcher, "areal_server.launch", f"--index {index}")


def trainer(launcher: int) -> list[psutil.Process]:
    """Supervisor, torchrun, and what it runs: ranks and reward processes."""
    return supervised(launcher, "torch.distributed.run")


def ranks(launcher: int) -> list[psutil.Process]:
    """The processes that train."""
    return [
        process
        for process in trainer(launcher)
        if "areal_trainer.train" in (line := command_line(process)) and "torch.distributed.run" not in line
    ]


def command_line(process: psutil.Process) -> str:
    """Empty where it is gone."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal processes of which some may be gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def chosen(among: Sequence[T], choice: float) -> T:
    """The one at the share ``choice`` of the way."""
    return among[int(choice * len(among))]


def marked(mark: str) -> list[str]:
    """Every process of the machine that was started by a run with this mark, as a line of text."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {command_line(process)[:120]}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_until_gone(mark: str) -> list[str]:
    """What is left after the time that processes get to die; they are then killed, so that no later run meets them."""
    deadline = time.monotonic() + DEATH_S
    while left := marked(mark):
        if time.monotonic() > deadline:
            for line in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.split()[0]), signal.SIGKILL)
            return left
        time.sleep(0.05)
    return []
