"""The cost of server and trainer deaths in a run of the tiny experiment with two servers; one ``grpo run`` per round.

Steps per second with both servers, then with one of them permanently dead; also the seconds until a killed server holds
current weights again and until a killed trainer completes its next step.
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

LONGEST_S = 300.0  # deadline for every wait
POLL_S = 0.02


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Compare a run with one of two servers dead to both alive. A round is one run."""
    steps, rounds = (2, 1) if small else (15, min(rounds, 3))
    one: list[float] = []
    both: list[float] = []
    servers: list[float] = []
    trainers: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, _grpo_run(Path(folder)) as faulty_run:
            both.append(faulty_run.rate(steps))
            servers.append(faulty_run.kill_server())
            trainers.append(faulty_run.kill_trainer())
            faulty_run.kill_server_for_good()
            one.append(faulty_run.rate(steps))
    notes = [
        f"a killed server holds current weights again after {spread(servers)} s",
        f"a killed trainer completes its next step after {spread(trainers)} s",
    ]
    work = f"{steps} steps of the tiny experiment, one of two servers dead"
    return [Comparison("faults", work, "steps/s", one, "the same with both", both, notes=notes)]


class FaultyRun:
    """A running experiment and the faults injected into it."""

    def __init__(self, launcher: int, run: Path, ports: list[int]) -> None:
        self._launcher = psutil.Process(launcher)
        self._run = run
        self._ports = ports

    def rate(self, steps: int) -> float:
        """Steps per second over the next ``steps`` complete steps."""
        first = self.steps_done() + 1  # the current step may have started earlier
        _wait(lambda: self.steps_done() >= first + steps, f"step {first + steps}")
        return 1 / statistics.median(line["seconds_per_step"] for line in self._lines()[first : first + steps])

    def kill_server(self) -> float:
        """Kill server-0; seconds until it holds the trainer's latest published weights or newer."""
        started = time.monotonic()
        self._kill("areal_server.launch", "--index 0")

        def is_current() -> bool:
            return self._held(self._ports[0]) >= self.steps_done() - 1

        _wait(lambda: self._held(self._ports[0]) < 0, "server-0 to die")
        _wait(is_current, "server-0 to hold current weights")
        return time.monotonic() - started

    def kill_trainer(self) -> float:
        """Kill the trainer; seconds until the next new step, after lost steps have been repeated."""
        step, started = self.steps_done(), time.monotonic()
        self._kill("torch.distributed.run")
        _wait(lambda: self.steps_done() > step, f"step {step + 1}")
        return time.monotonic() - started

    def kill_server_for_good(self) -> None:
        """Kill server-1 each time it restarts until the launcher gives up on it."""

        def is_given_up() -> bool:
            self._kill("areal_server.launch", "--index 1")
            return "server-1 died" in self._console() and "given up" in self._console()

        _wait(is_given_up, "server-1 to be given up")

    def _kill(self, *words: str) -> None:
        """SIGKILL the commands whose arguments contain ``words``; their supervisors clean up."""
        for process in self._launcher.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if all(word in line for word in words) and "supervisor.py" not in line:
                    process.send_signal(signal.SIGKILL)

    def _held(self, port: int) -> int:
        """The weight version that a server reports; −1 if it does not answer or has just started."""
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

    def steps_done(self) -> int:
        """Number of committed steps."""
        return len(self._lines())

    def _console(self) -> str:
        return (self._run.parent / "console.log").read_text()


@contextlib.contextmanager
def _grpo_run(folder: Path) -> Iterator[FaultyRun]:
    """The tiny experiment with two servers and more steps than are measured; killed at the end."""
    port = 29000 + os.getpid() % 900
    argv = [str(Path(sys.executable).with_name("grpo")), "run", str(TINY / "experiment.yaml"), "--port", str(port)]
    argv += ["servers.replicas=2", "config.total_train_steps=190", "config.valid_dataset=null"]
    argv += ["config.recover.freq_steps=5", f"config.cluster.fileroot={folder}", "config.trial_name=run"]
    run = folder / "tiny" / "run"
    run.parent.mkdir(parents=True)
    with (run.parent / "console.log").open("wb") as console:
        launcher = subprocess.Popen(argv, cwd=REPOSITORY, stdout=console, stderr=console)
    faulty_run = FaultyRun(launcher.pid, run, [port, port + 1])
    try:
        _wait(lambda: faulty_run.steps_done() >= 1, "the first step")
        yield faulty_run
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
        time.sleep(POLL_S)
