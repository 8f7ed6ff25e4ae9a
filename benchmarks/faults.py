"""What deaths cost a run of the tiny experiment with two servers, in one ``grpo run`` a round.

Steps a second with both servers, then with one of them dead for good. On the way, the seconds until a killed server
holds current weights again, and until a killed trainer has done the step after the last one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from areal_api import names
from benchmarks.measure import Comparison, spread
from benchmarks.runs import TINY
from benchmarks.scripted import REPOSITORY

LONGEST_S = 300.0  # of anything that is waited for
LOOK_S = 0.02


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """One dead of two against both. A round is a run."""
    steps, rounds = (2, 1) if small else (15, min(rounds, 3))
    one: list[float] = []
    both: list[float] = []
    servers: list[float] = []
    trainers: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, _grpo_run(Path(folder)) as struck:
            both.append(struck.rate(steps))
            servers.append(struck.kill_server())
            trainers.append(struck.kill_trainer())
            struck.bury_server()
            one.append(struck.rate(steps))
    notes = [
        f"a killed server holds current weights again after {spread(servers)} s",
        f"a killed trainer has done its next step after {spread(trainers)} s",
    ]
    work = f"{steps} steps of the tiny experiment, two servers of which one is dead"
    return [Comparison("faults", work, "steps/s", one, "the same with both", both, notes=notes)]


class Struck:
    """A run under way, and what is done to it."""

    def __init__(self, launcher: int, run: Path, ports: list[int]) -> None:
        self._launcher = psutil.Process(launcher)
        self._run = run
        self._ports = ports

    def rate(self, steps: int) -> float:
        """Steps a second over the next ``steps`` whole ones."""
        first = self._steps() + 1  # the one under way may have begun before
        _wait(lambda: self._steps() >= first + steps, f"step {first + steps}")
        return 1 / statistics.median(line["seconds_per_step"] for line in self._lines()[first : first + steps])

    def kill_server(self) -> float:
        """Seconds until it holds what the trainer published last, or newer."""
        started = time.monotonic()
        self._kill("areal_server.launch", "--index 0")

        def is_current() -> bool:
            return self._held(self._ports[0]) >= self._steps() - 1

        _wait(lambda: self._held(self._ports[0]) < 0, "server-0 to be gone")
        _wait(is_current, "server-0 to hold current weights")
        return time.monotonic() - started

    def kill_trainer(self) -> float:
        """Seconds until the step after the last one is done; what is lost with it is done again first."""
        step, started = self._steps(), time.monotonic()
        self._kill("torch.distributed.run")
        _wait(lambda: self._steps() > step, f"step {step + 1}")
        return time.monotonic() - started

    def bury_server(self) -> None:
        """Kill server-1 as often as it is started again, until the launcher gives it up."""

        def is_given_up() -> bool:
            self._kill("areal_server.launch", "--index 1")
            return "server-1 died" in self._said() and "given up" in self._said()

        _wait(is_given_up, "server-1 to be given up")

    def _kill(self, *words: str) -> None:
        """SIGKILL to the commands whose arguments hold ``words``; what looks after them cleans up."""
        for process in self._launcher.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if all(word in line for word in words) and "supervisor.py" not in line:
                    process.send_signal(signal.SIGKILL)

    def _held(self, port: int) -> int:
        """The version that a server says it holds; −1 where it does not answer, or has just been started."""
        key = (self._run / "api-key").read_text()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/model_info", headers={"Authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5.0) as response:
                version = str(json.load(response)["weight_version"])
        except (OSError, urllib.error.URLError):
            return -1
        return int(version[1:]) if version[1:].isdigit() else -1

    def _lines(self) -> list[dict[str, Any]]:
        file = names.stats_file(self._run)
        return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []

    def _steps(self) -> int:
        return len(self._lines())

    def _said(self) -> str:
        return (self._run.parent / "console.log").read_text()


@contextlib.contextmanager
def _grpo_run(folder: Path) -> Iterator[Struck]:
    """The tiny experiment with two servers, longer than it is looked at; killed at the end."""
    port = 29000 + os.getpid() % 900
    argv = [str(Path(sys.executable).with_name("grpo")), "run", str(TINY / "experiment.yaml"), "--port", str(port)]
    argv += ["servers.replicas=2", "config.total_train_steps=190", "config.valid_dataset=null"]
    argv += ["config.recover.freq_steps=5", f"config.cluster.fileroot={folder}", "config.trial_name=run"]
    run = folder / "tiny" / "run"
    run.parent.mkdir(parents=True)
    with (run.parent / "console.log").open("wb") as console:
        launcher = subprocess.Popen(argv, cwd=REPOSITORY, stdout=console, stderr=console)
    struck = Struck(launcher.pid, run, [port, port + 1])
    try:
        _wait(lambda: struck._steps() >= 1, "the first step")
        yield struck
    finally:
        tree = psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else []
        launcher.kill()
        launcher.wait()
        psutil.wait_procs(tree, timeout=30.0)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {LONGEST_S:.0f} s for {what}")
        time.sleep(LOOK_S)
