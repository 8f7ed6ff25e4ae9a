"""Processes of a local run, with small commands in the place of servers and trainer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from areal_launcher.errors import RunError
from areal_launcher.local.processes import HeldPort
from areal_launcher.local.run import LocalPlan, LocalRun, TrainerSpec
from areal_launcher.local.servers import ServerSpec
from areal_launcher.local.supervisor import parents
from areal_launcher.torchrun import status_of_rank, without_torchrun
from support.process_trees import DEADLINE_S, PROCESS_TREE, SLEEPER, alive, pids, python, wait_until

SERVER = (
    PROCESS_TREE
    + """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""
)
GENTLE = (
    PROCESS_TREE
    + """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("checkpoint written")))
time.sleep(600)
"""
)
DEAF = (
    PROCESS_TREE
    + """
import signal
signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
while True:
    time.sleep(1)
"""
)


class Log:
    """A display that remembers."""

    def __init__(self, on_message: Callable[[str], None] = lambda text: None) -> None:
        self.said: list[str] = []
        self.on_message = on_message

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None: ...
    def update(self, stats: object, total: int | None) -> None: ...

    def phase(self, text: str) -> None:
        if text not in self.said:
            self.message(text)

    def message(self, text: str) -> None:
        self.said.append(text)
        self.on_message(text)


@pytest.fixture
def ports() -> Iterator[list[HeldPort]]:
    held = [HeldPort("127.0.0.1"), HeldPort("127.0.0.1")]
    yield held
    for port in held:
        port.release()


def plan(tmp: Path, trainer: list[str], servers: list[list[str]], ports: list[HeldPort]) -> LocalPlan:
    specs = [
        ServerSpec(f"server-{i}", "127.0.0.1", port.number, argv, os.environ, tmp / "logs" / f"server-{i}.log")
        for i, (argv, port) in enumerate(zip(servers, ports, strict=False))
    ]
    return LocalPlan(
        run=tmp,
        servers=specs,
        trainer=TrainerSpec(trainer, os.environ, tmp / "logs" / "trainer.log"),
        setup_timeout_s=DEADLINE_S,
        total_steps=None,
    )


def serving(tmp: Path, port: HeldPort) -> list[str]:
    return python(SERVER, tmp / "pids", port.number)


def test_the_trainers_success_ends_the_run_and_every_server(tmp_path: Path, ports: list[HeldPort]) -> None:
    trainer = python("import time; time.sleep(1.0)")
    servers = [serving(tmp_path, port) for port in ports]
    assert LocalRun(plan(tmp_path, trainer, servers, ports), Log()).run() == 0
    family = pids(tmp_path / "pids")
    assert len(family) == 4
    assert not any(alive(pid) for pid in family)


def test_the_trainers_failure_carries_its_exit_status_and_last_lines(tmp_path: Path, ports: list[HeldPort]) -> None:
    trainer = python("print('data set words has no column answer', flush=True); raise SystemExit(7)")
    with pytest.raises(RunError, match="exit status 7") as failure:
        LocalRun(plan(tmp_path, trainer, [serving(tmp_path, ports[0])], ports), Log()).run()
    assert failure.value.status == 7
    assert failure.value.lines == ["data set words has no column answer"]
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_server_that_cannot_start_is_reported_at_once_with_its_last_lines(
    tmp_path: Path, ports: list[HeldPort]
) -> None:
    broken = python("print('no kernel image'); raise SystemExit(3)")
    started = time.monotonic()
    loading = python(SLEEPER, tmp_path / "pids")  # one that serves would let the run go on
    run = plan(tmp_path, python(SLEEPER, tmp_path / "pids"), [loading, broken], ports)
    with pytest.raises(RunError, match="server-1 failed to start: exit status 3") as failure:
        LocalRun(run, Log()).run()
    assert time.monotonic() - started < 10
    assert failure.value.lines == ["no kernel image"]
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_command_that_does_not_exist_is_reported(tmp_path: Path, ports: list[HeldPort]) -> None:
    with pytest.raises(RunError, match="exit status 127") as failure:
        LocalRun(plan(tmp_path, ["/nowhere/torchrun"], [], ports), Log()).run()
    assert failure.value.lines == ["cannot start /nowhere/torchrun: No such file or directory"]


def test_a_server_that_is_never_ready_is_reported_after_the_deadline(tmp_path: Path, ports: list[HeldPort]) -> None:
    deaf = plan(tmp_path, python(SLEEPER, tmp_path / "pids"), [python(SLEEPER, tmp_path / "pids")], ports)
    with pytest.raises(RunError, match=r"not ready within rollout.setup_timeout = 0.5 s"):
        LocalRun(replace(deaf, setup_timeout_s=0.5), Log()).run()
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_dead_server_is_started_again_on_its_port(tmp_path: Path, ports: list[HeldPort]) -> None:
    def kill_once(text: str) -> None:
        if "ready" in text and len(pids(tmp_path / "pids")) == 2:
            os.kill(pids(tmp_path / "pids")[0], signal.SIGKILL)
        elif "server-0 ready" in text:
            (tmp_path / "done").touch()

    log = Log(kill_once)
    trainer = python("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)", tmp_path / "done")
    assert LocalRun(plan(tmp_path, trainer, [serving(tmp_path, ports[0])], ports), log).run() == 0
    assert any("server-0 died (exit status 137); restart 1 of 5 in 1 s" in text for text in log.said)
    assert len(pids(tmp_path / "pids")) == 4
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_server_that_dies_in_its_first_start_ends_no_run_that_another_serves(
    tmp_path: Path, ports: list[HeldPort]
) -> None:
    log = Log(lambda text: (tmp_path / "go").touch() if "server-0 ready" in text else None)
    # Dies once the other one serves; its second start serves too.
    late = python(
        "import os, sys, time\nwhile not os.path.exists(sys.argv[3]): time.sleep(0.02)\n"
        "if not os.path.exists(sys.argv[4]):\n    open(sys.argv[4], 'w'); sys.exit(7)\n" + SERVER,
        tmp_path / "pids",
        ports[1].number,
        tmp_path / "go",
        tmp_path / "died",
    )
    trainer = python(
        "import sys, time, urllib.request\nfor _ in range(200):\n    try: urllib.request.urlopen(sys.argv[1]); break\n"
        "    except OSError: time.sleep(0.05)\nelse: sys.exit(1)",
        f"http://127.0.0.1:{ports[1].number}/ready",
    )
    assert LocalRun(plan(tmp_path, trainer, [serving(tmp_path, ports[0]), late], ports), log).run() == 0
    assert any("server-1 died (exit status 7); restart 1 of 5 in 1 s" in text for text in log.said)


def test_what_the_killed_supervisor_of_a_server_left_is_gone_before_the_next_start(
    tmp_path: Path, ports: list[HeldPort]
) -> None:
    left: list[bool] = []

    def kill_once(text: str) -> None:
        family = pids(tmp_path / "pids")
        if "server-0 ready" in text and len(family) == 2:
            os.kill(parents()[family[0]], signal.SIGKILL)
        elif "server-0 ready" in text:
            left.extend(alive(pid) for pid in family[:2])
            (tmp_path / "done").touch()

    trainer = python("import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)", tmp_path / "done")
    assert LocalRun(plan(tmp_path, trainer, [serving(tmp_path, ports[0])], ports), Log(kill_once)).run() == 0
    assert left == [False, False]


# Kills the supervisor of the server as its own last deed, so that nobody looks after it before the run ends.
PARTING = """
import os, signal, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
server = open(sys.argv[1]).read().split()[0]
os.kill(int(open(f"/proc/{server}/stat").read().rpartition(")")[2].split()[1]), signal.SIGKILL)
"""


def test_nothing_is_left_of_a_server_whose_supervisor_was_killed_at_the_end(
    tmp_path: Path, ports: list[HeldPort]
) -> None:
    log = Log(lambda text: (tmp_path / "served").touch() if "server-0 ready" in text else None)
    trainer = python(PARTING, tmp_path / "pids", tmp_path / "served")
    assert LocalRun(plan(tmp_path, trainer, [serving(tmp_path, ports[0])], ports), log).run() == 0
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


# Writes one step a start, and fails until the third.
FRAGILE = """
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


def fragile(tmp: Path, kind: str, backoff_limit: int) -> LocalPlan:
    trainer = python(FRAGILE, tmp / "stats.jsonl", tmp / "starts", kind)
    return replace(plan(tmp, trainer, [], []), backoff_limit=backoff_limit)


def test_a_trainer_that_fails_after_a_step_is_started_again(tmp_path: Path) -> None:
    log = Log()
    assert LocalRun(fragile(tmp_path, "steps", 3), log).run() == 0
    assert [text.split(";")[0].split(", ")[-1] for text in log.said if "failed" in text] == [
        "restart 1 of 3",
        "restart 2 of 3",
    ]


# The first start writes a step, has a rank as torchrun has it, in a session of its own, and kills its own supervisor.
ABANDONED = (
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
ASKS = """
import os, sys
rank = open(sys.argv[1]).read().split()[1]
sys.exit(3 if os.path.exists(f"/proc/{rank}") else 0)
"""


def test_ranks_of_a_trainer_whose_supervisor_was_killed_are_gone_before_the_next_start(tmp_path: Path) -> None:
    code = f"import os, sys\nif os.path.exists(sys.argv[2]): exec({ASKS!r})\nelse: exec({ABANDONED!r})"
    trainer = python(code, tmp_path / "pids", tmp_path / "stats.jsonl")
    log = Log()
    assert LocalRun(replace(plan(tmp_path, trainer, [], []), backoff_limit=1), log).run() == 0
    assert any("exit status 137" in text for text in log.said)


def test_a_trainer_is_started_again_no_more_often_than_the_backoff_limit(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exit status 9"):
        LocalRun(fragile(tmp_path, "steps", 1), Log()).run()
    assert (tmp_path / "starts").read_text() == "xx"


def test_a_trainer_that_fails_before_its_first_step_is_not_started_again(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exit status 9"):
        LocalRun(fragile(tmp_path, "none", 3), Log()).run()
    assert (tmp_path / "starts").read_text() == "x"


def test_a_trainer_whose_configuration_cannot_work_is_not_started_again(tmp_path: Path) -> None:
    run = fragile(tmp_path, "steps", 3)
    argv = [word.replace("else 9", "else 2") for word in run.trainer.argv]
    with pytest.raises(RunError, match="exit status 2"):
        LocalRun(replace(run, trainer=replace(run.trainer, argv=argv)), Log()).run()
    assert (tmp_path / "starts").read_text() == "x"


def test_a_run_past_its_deadline_is_stopped_gently_and_is_an_error(tmp_path: Path) -> None:
    # torchrun's status after a signal is 1, whatever its ranks returned.
    trainer = python(GENTLE.replace("sys.exit(print(", "(print(").replace('written"))', 'written"), sys.exit(1))'))
    late = replace(plan(tmp_path, [*trainer, str(tmp_path / "pids")], [], []), active_deadline_s=1.0)
    with pytest.raises(RunError, match=r"activeDeadlineSeconds = 1.0"):
        LocalRun(late, Log()).run()
    assert "checkpoint written" in (tmp_path / "logs" / "trainer.log").read_text()


def test_torchruns_own_report_is_left_out_of_the_last_lines() -> None:
    lines = [
        "ValueError: no column 'answer'",
        "E1122 13:00:00 99 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: 1) local_rank: 0",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
    ]
    assert without_torchrun(lines) == ["ValueError: no column 'answer'"]
    assert status_of_rank(lines) == 1
    assert status_of_rank([lines[1].replace("exitcode: 1", "exitcode: -9")]) == 137
    assert status_of_rank(lines[:1]) is None


def test_a_port_in_use_is_refused_with_its_number() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot use port {number} on 127.0.0.1: Address already in use"):
            HeldPort("127.0.0.1", number)


def test_a_held_port_lets_its_server_listen(ports: list[HeldPort]) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", ports[0].number))
        server.listen()
        socket.create_connection(("127.0.0.1", ports[0].number), timeout=5).close()


DRIVER = """
import os, sys
from pathlib import Path
from areal_launcher.errors import RunError
from areal_launcher.local.servers import Fleet, ServerSpec
from areal_launcher.local.run import LocalPlan, LocalRun, TrainerSpec
from areal_launcher.torchrun import status_of_rank, without_torchrun
from areal_launcher.display import PlainDisplay
from areal_launcher.local.processes import HeldPort
from rich.console import Console
run, server, trainer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
port = HeldPort("127.0.0.1")
python = [sys.executable, "-S", "-c"]
serve = [*python, server, str(run / "pids"), str(port.number)]
spec = ServerSpec("server-0", "127.0.0.1", port.number, serve, os.environ, run / "s.log")
train = TrainerSpec([*python, trainer, str(run / "pids")], os.environ, run / "t.log")
plan = LocalPlan(run, [spec], train, 15.0, None)
sys.exit(LocalRun(plan, PlainDisplay(Console())).run())
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


def test_the_first_signal_lets_the_trainer_end_by_itself(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, GENTLE)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 0
    assert "writes a recovery checkpoint" in output
    assert "checkpoint written" in (tmp_path / "t.log").read_text()
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_the_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, DEAF)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGTERM)
    wait_until(lambda: "no" in (tmp_path / "t.log").read_text().split("\n"), "the trainer got the first signal")
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_orphans_of_a_killed_supervisor_are_killed_too(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path, SLEEPER)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True)
    for supervisor in children.stdout.split():
        os.kill(int(supervisor), signal.SIGKILL)
    launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 1
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))
