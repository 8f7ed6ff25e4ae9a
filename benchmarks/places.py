"""The tiny example on Slurm against the same run on this machine: first step, steps per second, replacement times.

Needs root and Debian's Slurm packages (`hack/slurm/install.sh`); the cluster's nodes are this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from areal_api import names
from areal_launcher.run_files import read_servers, read_stats
from benchmarks.measure import Comparison, spread
from benchmarks.runs import TINY
from benchmarks.scripted import REPOSITORY
from hack.testbed import slurm_cluster
from hack.testbed.slurm_cluster import command_lines

STEPS = 40
DEADLINE_S = 600.0
POLL_S = 0.02


@dataclass(frozen=True)
class Place:
    """Options that make ``grpo run`` use the place, and its environment."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """One run, in seconds but for ``rate``."""

    first_step_s: float
    rate: float  # steps per second: 1 ÷ the median of all steps but the first, before anything is killed
    server_s: float  # from the kill of a server to the readiness of its replacement
    trainer_s: float  # from the kill of a rank to the next step


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Steps per second on Slurm and locally, with the other times as notes."""
    reason = slurm_cluster.missing()
    if reason is not None:
        raise SystemExit(f"places: {reason}")
    steps, rounds = (8, 1) if small else (STEPS, min(rounds, 3))
    local = Place("local", (), {})
    found: dict[str, list[Measured]] = {"local": [], "slurm": []}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "cluster").mkdir()
        with slurm_cluster.slurm_cluster(work / "cluster") as cluster:
            slurm = Place("slurm", ("--on", "slurm", "slurm.nodes=2"), cluster.environment)
            for number in range(rounds):
                for place in (local, slurm) if number % 2 else (slurm, local):
                    found[place.name].append(measure(place, work, f"run{number}", steps))
    notes: list[str] = []
    for what, attribute in (
        ("command → first step", "first_step_s"),
        ("killed server → ready again", "server_s"),
        ("killed trainer → next step", "trainer_s"),
    ):
        both = ", ".join(f"{name} {spread([getattr(one, attribute) for one in found[name]])}" for name in found)
        notes.append(f"{what}: {both} s")
    rates = {name: [one.rate for one in found[name]] for name in found}
    work_text = f"{steps} steps of examples/tiny, one server and one trainer"
    return [Comparison("places", work_text, "steps/s", rates["slurm"], "local", rates["local"], goal=0.95, notes=notes)]


def measure(place: Place, work: Path, trial: str, steps: int) -> Measured:
    """One run in which a server and then a rank are killed after ``steps`` steps."""
    directory = work / place.name / "tiny" / trial
    began = time.monotonic()
    with started(place, directory) as process:

        def until(condition: Callable[[], bool], what: str) -> float:
            return wait_for(process, condition, f"{place.name}: {what}")

        until(lambda: bool(read_stats(directory).lines), "first step")
        first_step_s = time.monotonic() - began
        until(lambda: len(read_stats(directory).lines) >= steps, f"{steps} steps")
        seconds = [line["seconds_per_step"] for line in read_stats(directory).lines]
        kill(directory, "areal_server.launch")
        until(lambda: servers(directory) != ["ready"], "the server is missed")
        killed = time.monotonic()
        until(lambda: servers(directory) == ["ready"], "the server is replaced")
        server_s = time.monotonic() - killed
        starts = trainer_starts(directory)
        kill(directory, "areal_trainer.train")
        killed = time.monotonic()
        until(lambda: trainer_starts(directory) > starts, "the trainer restarts")
        restarted_at = len(names.stats_file(directory).read_text().splitlines())
        until(lambda: len(names.stats_file(directory).read_text().splitlines()) > restarted_at, "the next step")
        return Measured(first_step_s, 1 / statistics.median(seconds[1:]), server_s, time.monotonic() - killed)


@contextlib.contextmanager
def started(place: Place, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``grpo run`` in a place, for more steps than are measured; it is ended with the context."""
    grpo = [sys.executable, "-m", "areal_launcher.cli"]
    argv = [*grpo, "run", str(TINY / "experiment.yaml"), *place.arguments, "config.total_train_steps=100000"]
    argv += ["config.total_train_epochs=100000", "config.evaluator.freq_steps=100000"]
    argv += [f"config.cluster.fileroot={directory.parents[1]}", f"config.trial_name={directory.name}"]
    env = {**os.environ, **place.environment}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / "console.log").open("wb") as console:
        process = subprocess.Popen(argv, cwd=REPOSITORY, env=env, stdout=console, stderr=console)
    try:
        yield process
    finally:
        on = ["--on", "slurm"] if place.name == "slurm" else []
        subprocess.run([*grpo, "stop", str(directory), *on, "--now"], env=env, capture_output=True, check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool], what: str) -> float:
    """Wait; the seconds it took. Raises ``RuntimeError`` if the run ends or the deadline passes."""
    began = time.monotonic()
    while not condition():
        if process.poll() is not None or time.monotonic() - began > DEADLINE_S:
            raise RuntimeError(f"{what}: not seen; grpo's exit status is {process.poll()}")
        time.sleep(POLL_S)
    return time.monotonic() - began


def servers(directory: Path) -> list[str]:
    """The states of the servers, as the launcher reports them."""
    return [server["state"] for server in read_servers(directory)]


def trainer_starts(directory: Path) -> int:
    """How often the trainer was started."""
    return (names.logs_dir(directory) / "trainer.log").read_text(errors="replace").count("\n--- ") + 1


def kill(directory: Path, module: str) -> None:
    """Kill the processes of a module that belong to the run: the launch command names its directory or environment."""
    for pid, text in command_lines():
        if module in text and "srun" not in text and belongs(pid, directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def belongs(pid: int, directory: Path) -> bool:
    """Whether the run directory is in a process's arguments or environment."""
    proc = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        return str(directory).encode() in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
    return False
