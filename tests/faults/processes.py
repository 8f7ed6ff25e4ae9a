"""Finds and signals the processes of a run from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
MARK = "AREAL_FAULTS_RUN"  # environment variable of every descendant of a launcher under test
DEATH_S = 20.0


def find_supervised(launcher: int, *words: str) -> list[psutil.Process]:
    """The supervisor whose command line contains ``words``, its command, then the command's descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(launcher).children():
            line = command_line(child)
            if "supervisor.py" in line and all(f" {word} " in f" {line} " for word in words):
                return [child, *child.children(recursive=True)]
    return []


def server(launcher: int, index: int) -> list[psutil.Process]:
    """Supervisor and processes of a server."""
    return find_supervised(launcher, "areal_server.launch", f"--index {index}")


def trainer(launcher: int) -> list[psutil.Process]:
    """Supervisor, torchrun, and torchrun's descendants: ranks and reward processes."""
    return find_supervised(launcher, "torch.distributed.run")


def ranks(launcher: int) -> list[psutil.Process]:
    """The ranks of the trainer."""
    return [
        process
        for process in trainer(launcher)
        if "areal_trainer.train" in (line := command_line(process)) and "torch.distributed.run" not in line
    ]


def of_run(directory: Path, *words: str) -> list[psutil.Process]:
    """Interpreters of a run in this directory whose command lines contain ``words``, the supervisors left out."""
    found = []
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            if not argv or not Path(argv[0]).name.startswith("python") or any("supervisor.py" in word for word in argv):
                continue
            line = " ".join([*argv, ""])
            if all(word in line for word in words) and any(
                str(directory) in text for text in (line, *process.environ().values())
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def command_line(process: psutil.Process) -> str:
    """The command line, or an empty string if the process has exited."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal processes; those that have exited are ignored."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def choose(among: Sequence[T], choice: float) -> T:
    """The item at the fraction ``choice`` (0 ≤ choice < 1) of the sequence."""
    return among[int(choice * len(among))]


def processes_with_mark(mark: str) -> list[str]:
    """Every process on this machine started by a run with this mark, as a line of text."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {command_line(process)[:120]}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_until_gone(mark: str) -> list[str]:
    """Processes that remain after the deadline; they are killed so that later runs do not meet them."""
    deadline = time.monotonic() + DEATH_S
    while left := processes_with_mark(mark):
        if time.monotonic() > deadline:
            for line in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.split()[0]), signal.SIGKILL)
            return left
        time.sleep(0.05)
    return []
