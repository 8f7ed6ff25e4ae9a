"""Servers that fail to start or die, in a run with small stand-in commands."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from areal_api.names import server_addresses_file
from areal_launcher.core.place import PORT, SERVERS, Place, ProcessSpec
from areal_launcher.core.servers import ServerFleet, ServerLimits
from areal_launcher.errors import RunError
from areal_launcher.run_files import request_scale
from support.local_runs import SERVER, RecordingDisplay, execute, plan, serving
from support.process_trees import DEADLINE_S, SLEEPER, alive, pids, python


def test_a_dead_server_restarts_on_its_port(tmp_path: Path) -> None:
    def kill_once(text: str) -> None:
        if "server-0 ready" in text and len(pids(tmp_path / "pids")) == 2:
            os.kill(pids(tmp_path / "pids")[0], signal.SIGKILL)
        elif "server-0 ready" in text:
            (tmp_path / "done").touch()

    log = RecordingDisplay(kill_once)
    trainer = python("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)", tmp_path / "done")
    assert execute(plan(tmp_path, trainer, [serving(tmp_path)]), log) == 0
    assert any("server-0 died (exit status 137); restart 1 of 5 in 1 s" in text for text in log.messages)
    assert len(pids(tmp_path / "pids")) == 4
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_server_that_cannot_start_is_reported_immediately_with_its_last_lines(tmp_path: Path) -> None:
    broken = python("print('no kernel image'); raise SystemExit(3)")
    started = time.monotonic()
    loading = python(SLEEPER, tmp_path / "pids")  # a ready server would keep the run alive
    run = plan(tmp_path, python(SLEEPER, tmp_path / "pids"), [loading, broken])
    with pytest.raises(RunError, match="server-1 failed to start: exit status 3") as failure:
        execute(run, RecordingDisplay())
    assert time.monotonic() - started < 10
    assert failure.value.lines == ["no kernel image"]
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


@pytest.mark.parametrize("lost", [True, False])
def test_a_server_that_loses_its_node_before_it_is_ready_starts_again(tmp_path: Path, lost: bool) -> None:
    process = SimpleNamespace(poll=lambda: 137, lost=lost, seconds=1.0, address=None, tail=list)
    place = cast(Place, SimpleNamespace(start=lambda spec: process, ending=lambda: None))
    spec = ProcessSpec("server", 0, ["serve"], {}, tmp_path / "log")
    said: list[str] = []
    fleet = ServerFleet(place, [spec], limits=ServerLimits(startup_s=60.0, unhealthy_s=60.0), notify=said.append)
    if lost:
        fleet.tick()
        assert (fleet.servers[0].state, len(said)) == ("backoff", 1)
    else:
        with pytest.raises(RunError, match="server-0 failed to start"):
            fleet.tick()


def test_a_server_that_is_never_ready_is_reported_after_the_deadline(tmp_path: Path) -> None:
    deaf = plan(tmp_path, python(SLEEPER, tmp_path / "pids"), [python(SLEEPER, tmp_path / "pids")])
    with pytest.raises(RunError, match=r"not ready within servers.startupSeconds = 0.5 s"):
        execute(replace(deaf, limits=ServerLimits(startup_s=0.5, unhealthy_s=60.0)), RecordingDisplay())
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_server_that_fails_its_first_start_is_restarted_if_another_serves(tmp_path: Path) -> None:
    log = RecordingDisplay(lambda text: (tmp_path / "go").touch() if "server-0 ready" in text else None)
    # Dies once the other one serves; its second start serves too.
    late = python(
        "import os, sys, time\nwhile not os.path.exists(sys.argv[3]): time.sleep(0.02)\n"
        "if not os.path.exists(sys.argv[4]):\n    open(sys.argv[4], 'w'); sys.exit(7)\n" + SERVER,
        tmp_path / "pids",
        PORT,
        tmp_path / "go",
        tmp_path / "died",
    )
    trainer = python(
        "import sys, time, urllib.request\nurl = 'http://' + sys.argv[1].split(',')[1] + '/ready'\n"
        "for _ in range(200):\n    try: urllib.request.urlopen(url); break\n"
        "    except OSError: time.sleep(0.05)\nelse: sys.exit(1)",
        SERVERS,
    )
    assert execute(plan(tmp_path, trainer, [serving(tmp_path), late]), log) == 0
    assert any("server-1 died (exit status 7); restart 1 of 5 in 1 s" in text for text in log.messages)


def test_a_server_whose_health_checks_fail_is_restarted(tmp_path: Path) -> None:
    hangs, hung, done = (tmp_path / name for name in ("pids-hangs", "hung", "done"))

    def hang_once(text: str) -> None:
        if "its health checks failed for 0.4 s, rollout.weight_load_timeout" in text:
            hangs.rename(hung)
        elif "server-0 ready" in text:
            (done if hung.exists() else hangs).touch()

    log = RecordingDisplay(hang_once)
    trainer = python("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)", done)
    run = plan(tmp_path, trainer, [serving(tmp_path)])
    assert execute(replace(run, limits=ServerLimits(startup_s=60.0, unhealthy_s=0.4)), log) == 0


# Succeeds once the launcher has listed two servers and then one.
WAITS_FOR_SCALING = """
import json, sys, time
for wanted in (2, 1):
    while sum(map(bool, json.load(open(sys.argv[1])))) != wanted:
        time.sleep(0.02)
"""


def test_a_run_is_scaled_up_and_down_while_it_trains(tmp_path: Path) -> None:
    def ask(text: str) -> None:
        if " ready" in text:
            request_scale(tmp_path, 2 if "server-0" in text else 1)

    trainer = python(WAITS_FOR_SCALING, server_addresses_file(tmp_path))
    log = RecordingDisplay(ask)
    run = plan(tmp_path, trainer, [serving(tmp_path), serving(tmp_path)])
    assert execute(replace(run, replicas=1, drain_s=DEADLINE_S), log) == 0
    assert [text for text in log.messages if "scaling" in text] == [
        "scaling from 1 to 2 servers",
        "scaling from 2 to 1 servers",
    ]


def test_more_servers_than_the_run_was_started_for_are_refused(tmp_path: Path) -> None:
    def ask(text: str) -> None:
        if "ready" in text:
            request_scale(tmp_path, 3)
        elif "cannot scale" in text:
            (tmp_path / "done").touch()

    trainer = python("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)", tmp_path / "done")
    log = RecordingDisplay(ask)
    assert execute(plan(tmp_path, trainer, [serving(tmp_path)]), log) == 0
    assert "cannot scale to 3 servers: the run was started with at most 1" in log.messages
