"""Runs on a Slurm cluster, started and watched as a user does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from areal_launcher.places.slurm.job import read_job
from hack.testbed import slurm_cluster
from hack.testbed.slurm_cluster import SlurmCluster, wait_until

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "slurm_stand_in.py"
DEADLINE_S = 600.0


class SlurmRun:
    """A run with stand-in servers and trainer, by the commands that a user types."""

    def __init__(self, cluster: SlurmCluster, work: Path, name: str = "words") -> None:
        self.cluster = cluster
        self.directory = work / "runs" / name / "trial0"
        self._work = work
        self._file = work / f"{name}.yaml"
        self.extra_environment: dict[str, str] = {}
        self._started: list[subprocess.Popen[str]] = []
        self._write(name)

    def start(self, *arguments: str, command: str = "run") -> subprocess.Popen[str]:
        """Start ``grpo run --on slurm``."""
        argv = [sys.executable, "-m", "areal_launcher.cli", command, "--on", "slurm", str(self._file), *arguments]
        process = subprocess.Popen(
            argv, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._started.append(process)
        return process

    def change(self, section: str, **values: object) -> None:
        """Change keys of a section of the experiment."""
        experiment = yaml.safe_load(self._file.read_text())
        experiment["spec"][section] |= values
        self._file.write_text(yaml.safe_dump(experiment))

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Exit status and output of a command."""
        output, _ = process.communicate(timeout=DEADLINE_S)
        return process.returncode, output

    def grpo(self, command: str, *arguments: str) -> tuple[int, str]:
        """Run another command of grpo."""
        argv = [sys.executable, "-m", "areal_launcher.cli", command, *arguments]
        done = subprocess.run(
            argv, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.cluster.environment, **self.extra_environment}

    @property
    def steps(self) -> list[int]:
        file = self.directory / "stats.jsonl"
        return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def starts(self) -> list[int]:
        """The step after which each start of the trainer began."""
        return [int(step) for step in re.findall(r"^starting after step (\d+)\n", self.log("trainer"), re.MULTILINE)]

    def serving(self, index: int) -> list[int]:
        """The port of each start of a server."""
        return [int(port) for port in re.findall(r"^serving (\d+) n\d", self.log(f"server-{index}"), re.MULTILINE)]

    def nodes_of(self, name: str) -> list[str]:
        """The node of each start of a node of the trainer."""
        return re.findall(r"^training on (n\d) ", self.log(name), re.MULTILINE)

    def wait_until_running(self) -> None:
        """Wait until the first servers are ready and the trainer runs."""

        def running() -> bool:
            return all(f"server-{index} ready" in self.journal for index in (0, 1)) and bool(self.starts)

        wait_until(running, "servers and trainer run")

    @property
    def job(self) -> str:
        job = read_job(self.directory)
        assert job is not None
        return job.id

    def log(self, name: str) -> str:
        file = self.directory / "logs" / f"{name}.log"
        return file.read_text() if file.exists() else ""

    @property
    def journal(self) -> str:
        file = self.directory / "launcher.jsonl"
        return file.read_text() if file.exists() else ""

    def hold(self) -> None:
        """Make the trainer wait after its next step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "hold").touch()

    def resume(self) -> None:
        (self.directory / "hold").unlink()

    def processes(self, word: str) -> list[int]:
        """Stand-ins of this run whose command line contains ``word``."""
        found = [(pid, text) for pid, text in slurm_cluster.command_lines() if word in text and STAND_IN.name in text]
        return [pid for pid, text in found if str(self.directory) in text + environment_of(pid)]

    def the_process(self, find: Callable[[str], list[int]], word: str) -> int:
        """The only process that ``find`` finds; one that starts a command looks like two for a moment."""
        found: list[int] = []

        def is_alone() -> bool:
            found[:] = find(word)
            return len(found) == 1

        wait_until(is_alone, f"there is one process of {word}")
        return found[0]

    def python_processes(self, word: str) -> list[int]:
        """Processes of an interpreter whose command line contains ``word``; not the shells and srun that start them."""
        return self.processes_of("python", word)

    def processes_of(self, program: str, word: str) -> list[int]:
        """Processes of a program whose command line contains ``word``, in this run."""
        found = [(pid, text) for pid, text in slurm_cluster.command_lines() if word in text]
        found = [(pid, text) for pid, text in found if str(self.directory) in text]
        return [pid for pid, text in found if Path(text.split()[0]).name.startswith(program)]

    def end(self) -> None:
        with contextlib.suppress(AssertionError):
            self.cluster.command("scancel", "--signal=KILL", self.job, check=False)
            self.cluster.command("scancel", self.job, check=False)
        for process in self._started:
            process.kill()
            process.communicate()
        wait_until(lambda: not self.cluster.jobs(), "the cluster is empty")

    def _write(self, name: str) -> None:
        python = self._work / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
        python.chmod(0o755)
        model = self._work / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        (self._work / "train.jsonl").write_text('{"question": "1 + 1", "answer": "#### 2"}\n')
        experiment = {
            "apiVersion": "areal.dev/v1alpha1",
            "kind": "GRPOExperiment",
            "metadata": {"name": name},
            "spec": {
                "config": {
                    "cluster": {"fileroot": str(self._work / "runs")},
                    "actor": {"path": str(model)},
                    "train_dataset": {"path": str(self._work / "train.jsonl"), "batch_size": 4},
                    "recover": {"freq_steps": 5},
                },
                "servers": {"device": "cpu", "replicas": 2, "maxReplicas": 3},
                "trainer": {"device": "cpu", "nodes": 2, "env": [{"name": "STEPS", "value": "20"}]},
                "slurm": {"python": str(python), "nodes": 3},
            },
        }
        self._file.write_text(yaml.safe_dump(experiment))


def environment_of(pid: int) -> str:
    """The environment with which a process was started; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return ""
