"""SupervisedProcess commands: none of their processes outlives the supervisor, whichever process is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from areal_launcher.core.processes import SupervisedProcess
from support.process_trees import DEADLINE_S, PROCESS_TREE, SLEEPER, alive, pids, python, wait_until


def test_closing_the_pipe_kills_the_command_and_its_orphans(tmp_path: Path) -> None:
    process = SupervisedProcess(python(SLEEPER, tmp_path / "pids"), env=os.environ, log=tmp_path / "log")
    wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "the family has started")
    process.kill()
    process.wait(DEADLINE_S)
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_command_dies_with_its_supervisor(tmp_path: Path) -> None:
    """Nobody reaps it as an orphan here: this process is no subreaper."""
    supervised = SupervisedProcess(python(SLEEPER, tmp_path / "pids"), env=os.environ, log=tmp_path / "log")
    wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "it has started")
    command, grandchild = pids(tmp_path / "pids")
    os.kill(supervised.pid, signal.SIGKILL)
    try:
        wait_until(lambda: not alive(command), "the command is gone")
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_orphans_of_an_exited_command_are_killed(tmp_path: Path) -> None:
    process = SupervisedProcess(python(PROCESS_TREE, tmp_path / "pids"), env=os.environ, log=tmp_path / "log")
    assert process.wait(DEADLINE_S) == 0
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_command_killed_by_a_signal_has_the_shells_exit_status(tmp_path: Path) -> None:
    process = SupervisedProcess(python("import os; os.kill(os.getpid(), 11)"), env=os.environ, log=tmp_path / "log")
    assert process.wait(DEADLINE_S) == 128 + 11
