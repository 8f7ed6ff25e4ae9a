"""SupervisedProcess processes and reserved ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from areal_launcher.core.processes import ReservedPort, SupervisedProcess, children, kill_orphans
from areal_launcher.core.supervisor import PR_SET_CHILD_SUBREAPER, prctl
from support.process_trees import DEADLINE_S, alive, pids, python, wait_until


def test_reserving_a_port_in_use_fails_with_its_number() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot use port {number} on 127.0.0.1: Address already in use"):
            ReservedPort("127.0.0.1", number)


def test_a_server_can_listen_on_its_reserved_port(ports: list[ReservedPort]) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", ports[0].number))
        server.listen()
        socket.create_connection(("127.0.0.1", ports[0].number), timeout=5).close()


def test_the_tail_contains_only_lines_of_this_start(tmp_path: Path) -> None:
    for word in ("first", "second"):
        process = SupervisedProcess(python(f"print('{word}')"), env=os.environ, log=tmp_path / "log")
        process.wait(DEADLINE_S)
    assert process.tail() == ["second"]
    assert "first" in (tmp_path / "log").read_text()


# The main thread leaves at once, so that the process is a zombie that cannot be waited for while its other threads are
# there, which keep its child: so dies a process of many threads, only faster.
ZOMBIE_WITH_THREADS = """
import ctypes, os, subprocess, sys, threading, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_children_of_an_unreapable_zombie_are_killed_too(tmp_path: Path) -> None:
    others = children()
    subprocess.Popen([sys.executable, "-c", ZOMBIE_WITH_THREADS, str(tmp_path / "pids")])
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


def test_spared_children_are_not_killed_as_orphans(tmp_path: Path) -> None:
    others = children()
    stay, go = (SupervisedProcess(python("import time; time.sleep(9)"), env=os.environ, log=tmp_path / n) for n in "ab")
    kill_orphans(others | {stay.pid})
    assert stay.poll() is None
    assert go.poll() is not None
    stay.kill()
    stay.wait(DEADLINE_S)
