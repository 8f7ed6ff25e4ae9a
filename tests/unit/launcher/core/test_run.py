"""A local run with small stand-in commands for servers and trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from areal_launcher import run_files
from areal_launcher.core.place import PORT
from areal_launcher.core.plan import RunPlan
from areal_launcher.core.processes import SupervisedProcess
from areal_launcher.core.run import Run
from areal_launcher.core.supervisor import parents
from areal_launcher.errors import RunError
from areal_launcher.places.local.place import LocalPlace
from support.local_runs import (
    EXITS_ON_SIGTERM,
    IGNORES_SIGTERM,
    SERVER,
    RecordingDisplay,
    append,
    execute,
    line,
    plan,
    serving,
)
from support.process_trees import DEADLINE_S, PROCESS_TREE, SLEEPER, alive, pids, python, wait_until


def test_the_trainers_success_stops_every_server(tmp_path: Path) -> None:
    trainer = python("import time; time.sleep(1.0)")
    servers = [serving(tmp_path) for _ in range(2)]
    assert execute(plan(tmp_path, trainer, servers), RecordingDisplay()) == 0
    family = pids(tmp_path / "pids")
    assert len(family) == 4
    assert not any(alive(pid) for pid in family)


def test_a_failed_trainer_reports_its_exit_status_and_last_lines(tmp_path: Path) -> None:
    trainer = python("print('data set words has no column answer', flush=True); raise SystemExit(7)")
    with pytest.raises(RunError, match="exit status 7") as failure:
        execute(plan(tmp_path, trainer, [serving(tmp_path)]), RecordingDisplay())
    assert failure.value.status == 7
    assert failure.value.lines == ["data set words has no column answer"]
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_command_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exit status 127") as failure:
        execute(plan(tmp_path, ["/nowhere/torchrun"], []), RecordingDisplay())
    assert failure.value.lines == ["cannot start /nowhere/torchrun: No such file or directory"]


def test_processes_of_a_killed_supervisor_are_gone_before_the_server_restarts(tmp_path: Path) -> None:
    left: list[bool] = []

    def kill_once(text: str) -> None:
        family = pids(tmp_path / "pids")
        if "server-0 ready" in text and len(family) == 2:
            os.kill(parents()[family[0]], signal.SIGKILL)
        elif "server-0 ready" in text:
            left.extend(alive(pid) for pid in family[:2])
            (tmp_path / "done").touch()

    trainer = python("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)", tmp_path / "done")
    assert execute(plan(tmp_path, trainer, [serving(tmp_path)]), RecordingDisplay(kill_once)) == 0
    assert left == [False, False]


# Kills the server's supervisor just before exiting, so that no restart happens before the run ends.
KILLS_SERVER_SUPERVISOR = """
import os, signal, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
server = open(sys.argv[1]).read().split()[0]
os.kill(int(open(f"/proc/{server}/stat").read().rpartition(")")[2].split()[1]), signal.SIGKILL)
"""


def test_no_server_process_survives_if_its_supervisor_is_killed_at_the_end(tmp_path: Path) -> None:
    log = RecordingDisplay(lambda text: (tmp_path / "served").touch() if "server-0 ready" in text else None)
    trainer = python(KILLS_SERVER_SUPERVISOR, tmp_path / "pids", tmp_path / "served")
    assert execute(plan(tmp_path, trainer, [serving(tmp_path)]), log) == 0
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


# Writes one step per start and fails until the third start.
FAILS_TWICE = """
import json, os, sys
stats, starts = sys.argv[1], sys.argv[2]
with open(starts, "a") as file:
    file.write("x")
count = os.path.getsize(starts)
if sys.argv[3] == "steps":
    with open(stats, "a") as file:
        file.write(json.dumps({"step": count, "time": count}) + "\\n")
raise SystemExit(0 if count == 3 else 9)
"""


def failing_plan(tmp: Path, kind: str, backoff_limit: int) -> RunPlan:
    trainer = python(FAILS_TWICE, tmp / "stats.jsonl", tmp / "starts", kind)
    return replace(plan(tmp, trainer, []), backoff_limit=backoff_limit)


def test_a_trainer_that_fails_after_a_step_is_restarted(tmp_path: Path) -> None:
    log = RecordingDisplay()
    assert execute(failing_plan(tmp_path, "steps", 3), log) == 0
    assert [text.split(";")[0].split(", ")[-1] for text in log.messages if "failed" in text] == [
        "restart 1 of 3",
        "restart 2 of 3",
    ]


# The first start writes a step, starts a rank in its own session like torchrun, and kills its own supervisor.
KILLS_OWN_SUPERVISOR = (
    PROCESS_TREE
    + """
import json, signal
if os.path.exists(sys.argv[2]):
    raise SystemExit(0)
with open(sys.argv[2], "a") as file:
    file.write(json.dumps({"step": 1, "time": 1}) + "\\n")
time.sleep(0.5)
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(600)
"""
)


FAILS_IF_RANK_LIVES = """
import os, sys
rank = open(sys.argv[1]).read().split()[1]
sys.exit(3 if os.path.exists(f"/proc/{rank}") else 0)
"""


def test_ranks_of_a_killed_supervisor_are_gone_before_the_trainer_restarts(tmp_path: Path) -> None:
    second, first = FAILS_IF_RANK_LIVES, KILLS_OWN_SUPERVISOR
    code = f"import os, sys\nif os.path.exists(sys.argv[2]): exec({second!r})\nelse: exec({first!r})"
    trainer = python(code, tmp_path / "pids", tmp_path / "stats.jsonl")
    log = RecordingDisplay()
    assert execute(replace(plan(tmp_path, trainer, []), backoff_limit=1), log) == 0
    assert any("exit status 137" in text for text in log.messages)


def test_a_trainer_is_restarted_at_most_backoff_limit_times(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exit status 9"):
        execute(failing_plan(tmp_path, "steps", 1), RecordingDisplay())
    assert (tmp_path / "starts").read_text() == "xx"


def test_a_trainer_that_fails_before_its_first_step_is_not_restarted(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exit status 9"):
        execute(failing_plan(tmp_path, "none", 3), RecordingDisplay())
    assert (tmp_path / "starts").read_text() == "x"


def test_restarts_after_lost_nodes_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SupervisedProcess, "lost", property(lambda process: True))
    log = RecordingDisplay()
    assert execute(failing_plan(tmp_path, "none", 0), log) == 0
    assert [text.split(", ")[-1].split(";")[0] for text in log.messages if "failed" in text] == [
        "which does not count as a restart",
    ] * 2


def test_a_trainer_with_an_invalid_configuration_is_not_restarted(tmp_path: Path) -> None:
    run = failing_plan(tmp_path, "steps", 3)
    (trainer,) = run.trainer
    argv = [word.replace("else 9", "else 2") for word in trainer.argv]
    with pytest.raises(RunError, match="exit status 2"):
        execute(replace(run, trainer=[replace(trainer, argv=argv)]), RecordingDisplay())
    assert (tmp_path / "starts").read_text() == "x"


# torchrun's status after a signal is 1, whatever its ranks returned.
FAILS_ON_SIGTERM = EXITS_ON_SIGTERM.replace("sys.exit(print(", "(print(").replace(
    'written"))', 'written"), sys.exit(1))'
)


def test_a_run_past_its_deadline_is_terminated_gracefully_with_an_error(tmp_path: Path) -> None:
    late = replace(plan(tmp_path, python(FAILS_ON_SIGTERM, tmp_path / "pids"), []), active_deadline_s=1.0)
    with pytest.raises(RunError, match=r"activeDeadlineSeconds = 1.0"):
        execute(late, RecordingDisplay())
    assert "checkpoint written" in (tmp_path / "logs" / "trainer.log").read_text()


def test_the_deadline_counts_the_time_before_this_start_of_the_launcher(tmp_path: Path) -> None:
    trainer = python(IGNORES_SIGTERM.replace('print("no", flush=True)', "os._exit(1)"), tmp_path / "pids")
    late = replace(plan(tmp_path, trainer, []), active_deadline_s=3600.0, elapsed_s=3599.0)
    with pytest.raises(RunError, match=r"activeDeadlineSeconds = 3600.0"):
        execute(late, RecordingDisplay())


@pytest.mark.parametrize(("limit_s", "waited_s"), [(1.0, 0.0), (600.0, 599.0)])
def test_servers_that_do_not_run_in_time_end_the_run(tmp_path: Path, limit_s: float, waited_s: float) -> None:
    late = plan(tmp_path, python(SLEEPER, tmp_path / "trainer"), [python(SLEEPER, tmp_path / "pids", PORT)])
    with pytest.raises(
        RunError, match=rf"preRunningDeadlineSeconds = {limit_s:g}: 0 of 1 servers are ready, the trainer has started"
    ):
        execute(replace(late, pre_running_deadline_s=limit_s, waited_s=waited_s), RecordingDisplay())


DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from areal_launcher.core.place import PORT, ProcessSpec
from areal_launcher.core.plan import RunPlan
from areal_launcher.core.run import Run
from areal_launcher.core.servers import ServerLimits
from areal_launcher.display import PlainDisplay
from areal_launcher.places.local.place import LocalPlace
run, server, trainer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
python = [sys.executable, "-S", "-c"]
servers = [ProcessSpec("server", 0, [*python, server, str(run / "pids"), PORT], {}, run / "s.log")]
train = [ProcessSpec("trainer", 0, [*python, trainer, str(run / "pids")], {}, run / "t.log")]
sys.exit(Run(RunPlan(run, servers, train, ServerLimits(15.0, 15.0), None), LocalPlace(), PlainDisplay(Console())).run())
"""


def start_launcher(run: Path, trainer: str) -> subprocess.Popen[str]:
    launcher = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(run), SERVER, trainer], stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: len(pids(run / "pids")) == 4, "server and trainer have started")
    return launcher


def test_killing_the_launcher_leaves_no_process_behind(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, SLEEPER)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path / "pids")), "all processes are gone")


def test_the_first_signal_terminates_the_trainer_gracefully(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, EXITS_ON_SIGTERM)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 0
    assert "writes a recovery checkpoint" in output
    assert "checkpoint written" in (tmp_path / "t.log").read_text()
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_the_second_signal_kills_everything_immediately(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, IGNORES_SIGTERM)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGTERM)
    wait_until(lambda: "no" in (tmp_path / "t.log").read_text().split("\n"), "the trainer got the first signal")
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_stop_request_ends_a_run_like_a_signal_and_a_second_one_kills_it(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, IGNORES_SIGTERM)
    run_files.request_stop(tmp_path, now=False)
    wait_until(lambda: "no" in (tmp_path / "t.log").read_text().split("\n"), "the trainer got SIGTERM")
    run_files.request_stop(tmp_path, now=True)
    launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 128 + signal.SIGTERM


def test_orphans_of_a_killed_supervisor_are_killed_too(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, SLEEPER)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True)
    for supervisor in children.stdout.split():
        os.kill(int(supervisor), signal.SIGKILL)
    launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 1
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


@pytest.mark.parametrize("ignored", ["SIGHUP", "SIGINT"])
def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path: Path, ignored: str) -> None:
    """nohup ignores SIGHUP; a shell ignores SIGINT of a background job."""
    number = getattr(signal, ignored)
    code = f"import signal; signal.signal(signal.{ignored}, signal.SIG_IGN)\n{DRIVER}"
    command = [sys.executable, "-c", code, str(tmp_path), SERVER, EXITS_ON_SIGTERM]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: len(pids(tmp_path / "pids")) == 4, "server and trainer have started")
    for _ in range(3):
        launcher.send_signal(number)
        time.sleep(0.3)
    assert launcher.poll() is None
    assert all(alive(pid) for pid in pids(tmp_path / "pids"))
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 0
    assert "writes a recovery checkpoint" in output


def test_statistics_that_cannot_be_read_do_not_end_a_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stats.jsonl")
    log = RecordingDisplay()
    trainer = python("import time; time.sleep(0.5)")
    assert execute(plan(tmp_path, trainer, []), log) == 0
    assert [text for text in log.messages if "cannot show the progress" in text] == [
        f"grpo cannot show the progress: {tmp_path / 'stats.jsonl'} is not a regular file; remove it"
    ]


def test_a_path_with_spaces_quotes_and_bytes_that_are_no_utf8_is_a_working_directory(tmp_path: Path) -> None:
    run = tmp_path / "a 'b\" $c\n\udcff"
    run.mkdir()
    trainer = python("import sys; sys.exit(0 if sys.argv[1].endswith('\\udcff') else 4)", run)
    assert execute(plan(run, trainer, []), RecordingDisplay()) == 0


class PreemptedPlace(LocalPlace):
    """Takes every process away, which it tells once one has ended."""

    def ending(self) -> str | None:
        ended = [process for process in self._processes if process.poll() is not None]
        return "job 7 is preempted" if ended else None


@pytest.mark.parametrize("served", [True, False])
def test_a_server_that_its_place_takes_away_is_not_restarted_and_the_trainer_writes_a_checkpoint(
    tmp_path: Path, served: bool
) -> None:
    def end_server(text: str) -> None:
        if "server-0 ready" in text:
            wait_until(lambda: len(pids(tmp_path / "pids")) == 4, "the trainer has started")
            os.kill(pids(tmp_path / "pids")[0], signal.SIGTERM)

    until_trained = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)"
    server = serving(tmp_path) if served else python(until_trained, tmp_path / "pids", PORT)
    log = RecordingDisplay(end_server)
    run = replace(plan(tmp_path, python(FAILS_ON_SIGTERM, tmp_path / "pids"), [server]), backoff_limit=1)
    assert Run(run, PreemptedPlace(), log).run() == 128 + signal.SIGTERM
    assert "checkpoint written" in (tmp_path / "logs" / "trainer.log").read_text()
    assert "job 7 is preempted; the run ends" in log.messages
    assert not [text for text in log.messages if "died" in text or "again" in text]
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_trainer_that_its_place_takes_away_has_not_failed(tmp_path: Path) -> None:
    append(tmp_path / "earlier.jsonl", line(1))
    trains = "import os, sys, time\nos.rename(sys.argv[1], sys.argv[2])\ntime.sleep(0.5)\nsys.exit(1)"
    trainer = python(trains, tmp_path / "earlier.jsonl", tmp_path / "stats.jsonl")
    log = RecordingDisplay()
    run = replace(plan(tmp_path, trainer, []), backoff_limit=1)
    assert Run(run, PreemptedPlace(), log).run() == 128 + signal.SIGTERM
    assert not [text for text in log.messages if "failed" in text]
