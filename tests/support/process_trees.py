"""Small commands that stand for servers and trainers with child processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 15.0

# Writes its process ID and that of a child in its own session, as SGLang and torchrun may start theirs.
PROCESS_TREE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
"""
SLEEPER = PROCESS_TREE + "time.sleep(600)\n"


def python(code: str, *args: object) -> list[str]:
    return [sys.executable, "-S", "-c", code, *map(str, args)]


def pids(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {deadline_s} s: {what}"
        time.sleep(0.02)
