"""SupervisedProcess commands: none of their processes outlives the supervisor, whichever process is killed."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from areal_launcher.core import supervisor
from areal_launcher.core.processes import GUARDED, SupervisedProcess
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


@pytest.mark.parametrize("victim", ["outer", "inner"])
def test_nothing_outlives_a_guarded_command_if_either_supervisor_is_killed(tmp_path: Path, victim: str) -> None:
    process = SupervisedProcess(
        python(SLEEPER, tmp_path / "pids"), env=os.environ, log=tmp_path / "log", supervisor=GUARDED
    )
    wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "the family has started")
    (inner,) = (pid for pid, parent in supervisor.parents().items() if parent == process.pid)
    os.kill(process.pid if victim == "outer" else inner, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in [inner, *pids(tmp_path / "pids")]), "everything is gone")
    assert process.wait(DEADLINE_S) == 128 + signal.SIGKILL


def test_a_guarded_command_gets_sigterm_and_returns_its_status(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(600)"
    )
    process = SupervisedProcess(python(code), env=os.environ, log=tmp_path / "log", supervisor=GUARDED)
    wait_until(lambda: process.tail() == ["up"], "it has started")
    process.terminate()
    assert process.wait(DEADLINE_S) == 7


def test_supervisors_keep_an_inherited_lock_until_the_command_has_ended(tmp_path: Path) -> None:
    lock, probe = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    fcntl.flock(lock, fcntl.LOCK_EX)
    process = SupervisedProcess(
        python(SLEEPER, tmp_path / "pids"), env=os.environ, log=tmp_path / "log", supervisor=GUARDED, keep_open=[lock]
    )
    os.close(lock)
    wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "the family has started")
    with pytest.raises(BlockingIOError):
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.wait(DEADLINE_S)
    fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(probe)
