"""Commands under a supervisor: nothing of them outlives it, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from areal_launcher.local.processes import Supervised, children, kill_orphans, kill_together
from areal_launcher.local.supervisor import PR_SET_CHILD_SUBREAPER, prctl
from support.process_trees import DEADLINE_S, PROCESS_TREE, SLEEPER, alive, pids, python, wait_until


def test_a_supervised_command_and_its_orphans_die_with_the_lifeline(tmp_path: Path) -> None:
    process = Supervised("family", python(SLEEPER, tmp_path / "pids"), env=os.environ, log=tmp_path / "log")
    wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "the family has started")
    kill_together([process])
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_command_dies_with_its_supervisor(tmp_path: Path) -> None:
    """Nobody reaps it as an orphan here: this process is no subreaper."""
    supervised = Supervised("a", python(SLEEPER, tmp_path / "pids"), env=os.environ, log=tmp_path / "log")
    wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "it has started")
    command, grandchild = pids(tmp_path / "pids")
    os.kill(supervised.pid, signal.SIGKILL)
    try:
        wait_until(lambda: not alive(command), "the command is gone")
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_orphans_of_a_command_that_ended_are_killed(tmp_path: Path) -> None:
    process = Supervised("family", python(PROCESS_TREE, tmp_path / "pids"), env=os.environ, log=tmp_path / "log")
    assert process.wait(DEADLINE_S) == 0
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_command_killed_by_a_signal_has_the_shells_exit_status(tmp_path: Path) -> None:
    process = Supervised("x", python("import os; os.kill(os.getpid(), 11)"), env=os.environ, log=tmp_path / "log")
    assert process.wait(DEADLINE_S) == 128 + 11


def test_the_tail_holds_only_lines_of_this_start(tmp_path: Path) -> None:
    for word in ("first", "second"):
        process = Supervised(word, python(f"print('{word}')"), env=os.environ, log=tmp_path / "log")
        process.wait(DEADLINE_S)
    assert process.tail() == ["second"]
    assert "first" in (tmp_path / "log").read_text()


# The main thread leaves at once, so that the process is a zombie that cannot be waited for while its other threads are
# there, which keep its child: so dies a process of many threads, only faster.
HALF_DEAD = """
import ctypes, os, subprocess, sys, threading, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_the_children_of_a_process_that_is_half_dead_are_killed_with_it(tmp_path: Path) -> None:
    others = children()
    subprocess.Popen([sys.executable, "-c", HALF_DEAD, str(tmp_path / "pids")])
    wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "both have started")
    dying, child = pids(tmp_path / "pids")
    wait_until(lambda: not alive(dying), "its main thread has left")
    assert alive(child)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        kill_orphans(others)
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
    assert not alive(child)
    assert children(zombies=True) <= others


def test_only_children_that_are_not_spared_are_killed_as_orphans(tmp_path: Path) -> None:
    others = children()
    stay, go = (Supervised(n, python("import time; time.sleep(9)"), env=os.environ, log=tmp_path / n) for n in "ab")
    kill_orphans(others | {stay.pid})
    assert stay.poll() is None
    assert go.poll() is not None
    kill_together([stay])
