"""The tiny example on Slurm and on Ray against the same run on this machine: first step, rate, replacement times.

Slurm needs root and Debian's packages (`hack/slurm/install.sh`), Ray needs `make ray`; a place that is not installed is
left out. The clusters' nodes are this machine. A cluster runs only during its own measurements.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from areal_api import names
from areal_launcher.run_files import read_servers, read_stats
from benchmarks.measure import Comparison, spread
from benchmarks.runs import TINY
from benchmarks.scripted import REPOSITORY
from hack.testbed import slurm_cluster
from hack.testbed.ray_cluster import RayCluster
from hack.testbed.slurm_cluster import command_lines

STEPS = 20
DEADLINE_S = 600.0
POLL_S = 0.05
CHECKPOINT_STEPS = 5
REPEATED_STEPS = 3  # at most, by a trainer that is killed: it continues from a checkpoint
CONSOLE_LINES = 20


@dataclass(frozen=True)
class Place:
    """Options that make ``grpo run`` use the place, and the cluster that they need: a context with its environment."""

    name: str
    arguments: Sequence[str]
    cluster: Callable[[Path], AbstractContextManager[Mapping[str, str]]]


@dataclass(frozen=True)
class Measured:
    """One run, in seconds but for ``rate``."""

    first_step_s: float
    rate: float  # steps per second: 1 ÷ the mean of all steps but the first, before anything is killed
    server_s: float  # from the kill of a server to the readiness of its replacement
    trainer_s: float  # from the kill of a rank to the next new step


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Steps per second in each place and locally, with the other times as notes."""
    places, notes = installed_places()
    if len(places) == 1:
        raise SystemExit(f"places: {'; '.join(notes)}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # leaves no cluster behind
    steps, rounds = (8, 1) if small else (STEPS, min(rounds, 3))
    found: dict[str, list[Measured]] = {place.name: [] for place in places}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for place in places[number % len(places) :] + places[: number % len(places)]:
                work = Path(folder) / f"{place.name}{number}"
                work.mkdir()
                with place.cluster(work) as environment:
                    found[place.name].append(measure(place, environment, work, steps))
                print(f"round {number + 1}, {place.name}: {found[place.name][-1]}", file=sys.stderr, flush=True)
    notes.extend(table(found))
    rates = {name: [one.rate for one in found[name]] for name in found}
    work_text = f"{steps} steps of examples/tiny, one server and one trainer"
    comparisons = [
        Comparison(f"places ({name})", work_text, "steps/s", rates[name], "local", rates["local"], goal=0.95)
        for name in rates
        if name != "local"
    ]
    comparisons[-1].notes.extend(notes)
    return comparisons


def table(found: Mapping[str, Sequence[Measured]]) -> list[str]:
    """The lines of a Markdown table with a column for each place."""
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for what, attribute in (
        ("steps/s", "rate"),
        ("command → first step, s", "first_step_s"),
        ("killed server → ready again, s", "server_s"),
        ("killed trainer → next step, s", "trainer_s"),
    ):
        cells = [spread([getattr(one, attribute) for one in found[name]]) for name in found]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def installed_places() -> tuple[list[Place], list[str]]:
    """The places that can be measured here, and why others cannot."""
    places, missing = [Place("local", (), no_cluster)], []
    reason = slurm_cluster.missing()
    if reason is None:
        places.append(Place("slurm", ("--on", "slurm", "slurm.nodes=2"), slurm))
    else:
        missing.append(f"Slurm is not measured: {reason}")
    if importlib.util.find_spec("ray") is not None:
        places.append(Place("ray", ("--on", "ray"), ray))
    else:
        missing.append("Ray is not measured: it is not installed (make ray)")
    return places, missing


@contextlib.contextmanager
def no_cluster(work: Path) -> Iterator[Mapping[str, str]]:
    """This machine."""
    yield {}


@contextlib.contextmanager
def slurm(work: Path) -> Iterator[Mapping[str, str]]:
    """A Slurm cluster of three nodes."""
    folder = work / "cluster"
    folder.mkdir()
    with slurm_cluster.slurm_cluster(folder) as cluster:
        yield cluster.environment


@contextlib.contextmanager
def ray(work: Path) -> Iterator[Mapping[str, str]]:
    """A Ray cluster of two nodes: the trainer fills one, the server gets the other."""
    with RayCluster(nodes=2, cpus=2) as cluster:
        yield cluster.environment()


def measure(place: Place, environment: Mapping[str, str], work: Path, steps: int) -> Measured:
    """One run in which a server and then the trainer are killed after ``steps`` steps."""
    directory = work / "runs" / "tiny" / "run"
    began = time.monotonic()
    with started(place, environment, directory) as process:

        def until(condition: Callable[[], bool], what: str) -> float:
            return wait_for(process, condition, f"{place.name}: {what}", directory)

        until(lambda: steps_done(directory) > 0, "first step")
        first_step_s = time.monotonic() - began
        until(lambda: steps_done(directory) >= steps, f"{steps} steps")
        seconds = [line["seconds_per_step"] for line in read_stats(directory).lines]
        killed = time.monotonic()
        kill(directory, "areal_server.launch")
        until(lambda: servers(directory) != ["ready"], "the server is missed")
        until(lambda: servers(directory) == ["ready"], "the server is replaced")
        server_s = time.monotonic() - killed
        until(lambda: last_checkpoint(directory) >= steps_done(directory) - REPEATED_STEPS, "a recent checkpoint")
        killed = time.monotonic()
        kill(directory, "areal_trainer.train")
        last = steps_done(directory)  # a step may have ended before the kill
        until(lambda: steps_done(directory) > last, "a new step")
        return Measured(first_step_s, 1 / statistics.fmean(seconds[1:]), server_s, time.monotonic() - killed)


@contextlib.contextmanager
def started(place: Place, environment: Mapping[str, str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``grpo run`` in a place, for more steps than are measured; it is ended with the context."""
    grpo = [sys.executable, "-m", "areal_launcher.cli"]
    argv = [*grpo, "run", str(TINY / "experiment.yaml"), *place.arguments, "config.total_train_steps=100000"]
    argv += ["config.total_train_epochs=100000", "config.evaluator.freq_steps=100000"]
    argv += [f"config.recover.freq_steps={CHECKPOINT_STEPS}"]
    argv += [f"config.cluster.fileroot={directory.parents[1]}", f"config.trial_name={directory.name}"]
    env = {**os.environ, **environment}
    directory.parent.mkdir(parents=True)
    with console_log(directory).open("wb") as console:
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


def console_log(directory: Path) -> Path:
    """The output of ``grpo run``."""
    return directory.parent / "console.log"


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool], what: str, directory: Path) -> float:
    """Wait; the seconds it took. Raises ``RuntimeError`` if the run ends or the deadline passes."""
    began = time.monotonic()
    while not condition():
        if process.poll() is not None or time.monotonic() - began > DEADLINE_S:
            output = console_log(directory).read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
            raise RuntimeError("\n".join([f"{what}: not seen; grpo's exit status is {process.poll()}", *output]))
        time.sleep(POLL_S)
    return time.monotonic() - began


def steps_done(directory: Path) -> int:
    """Number of steps in the statistics."""
    try:
        return names.stats_file(directory).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def last_checkpoint(directory: Path) -> int:
    """The step of the newest recovery checkpoint; 0 if there is none."""
    found = [path.name.removeprefix("step") for path in names.recover_dir(directory).glob("step*")]
    return max((int(step) for step in found if step.isdecimal()), default=0)


def servers(directory: Path) -> list[str]:
    """The states of the servers, as the launcher reports them."""
    return [server["state"] for server in read_servers(directory)]


def kill(directory: Path, module: str) -> None:
    """Kill the processes of a module that belong to the run, but not what starts and supervises them."""
    for pid, text in command_lines():
        if module in text and "srun" not in text and "supervisor.py" not in text and belongs(pid, directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def belongs(pid: int, directory: Path) -> bool:
    """Whether the run directory is in a process's arguments or environment."""
    proc = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        return str(directory).encode() in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
    return False
