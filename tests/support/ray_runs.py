"""The tiny experiment on a Ray cluster, started by ``grpo run --on ray`` and watched from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from areal_launcher.core.supervisor import PR_SET_PDEATHSIG, prctl
from areal_launcher.run_files import read_servers
from hack.testbed.ray_cluster import RayCluster, arguments

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny" / "experiment.yaml"
STEP_S = 400.0  # for the next step, with restarts in between, on a busy machine


class RayRun:
    """One run. A node of the trainer needs two CPUs and a server one: a node of three CPUs holds one of each."""

    def __init__(self, cluster: RayCluster, work: Path, trial: str, *, servers: int = 2, nodes: int = 2) -> None:
        self._cluster = cluster
        self._work = work
        self._trial = trial
        self._servers = servers
        self._nodes = nodes
        self.directory = work / "tiny" / trial
        self.console = work / f"{trial}.log"

    def start(self, *, steps: int, wait_s: int | None = None) -> subprocess.Popen[bytes]:
        """Run the command."""
        path = self._work / f"{self._trial}.yaml"
        path.write_text(yaml.safe_dump(self._experiment(steps, wait_s)))
        argv = [sys.executable, "-m", "areal_launcher.cli", "run", "--on", "ray", str(path)]
        with self.console.open("ab") as console:
            return subprocess.Popen(
                argv,
                cwd=ROOT,
                env=self._cluster.environment() | {"OMP_NUM_THREADS": "1"},
                stdout=console,
                stderr=console,
                preexec_fn=_die_with_the_tests,
            )

    def steps(self) -> list[dict[str, Any]]:
        """The complete lines of stats.jsonl."""
        try:
            text = (self.directory / "stats.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_for_step(self, step: int, launcher: subprocess.Popen[bytes]) -> None:
        """Wait until this step is finished."""
        self.wait_until(lambda: len(self.steps()) >= step, f"step {step}", launcher)

    def wait_until(
        self, condition: Callable[[], object], what: str, launcher: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Wait with a generous deadline; fails early if the launcher has ended."""
        deadline = time.monotonic() + STEP_S
        while not condition():
            ended = launcher is not None and launcher.poll() is not None and not condition()
            assert not ended, f"grpo ended while waiting for {what}:\n{self.output()}"
            assert time.monotonic() < deadline, f"no {what} within {STEP_S:g} s:\n{self.output()}"
            time.sleep(0.1)

    def node_of(self, name: str) -> str:
        """Address of the node on which a process was last started."""
        return (self.directory / "locks" / name).read_text()

    def server_states(self) -> dict[str, str]:
        """The launcher's view of its servers."""
        return {server["name"]: server["state"] for server in read_servers(self.directory)}

    def processes(self, *words: str) -> list[psutil.Process]:
        """The processes of the run with all these words in their command lines, the supervisors left out."""
        found = [(process, " ".join(arguments(process))) for process in self._cluster.processes()]
        return [
            process
            for process, line in found
            if str(self.directory) in f"{line} {_run_of(process)}" and "supervisor.py" not in line
            if all(word in line for word in words)
        ]

    def kill(self, *words: str) -> None:
        """Kill one process."""
        self.processes(*words)[0].send_signal(signal.SIGKILL)

    def output(self) -> str:
        """The last output of launcher and processes."""
        logs = [self.console, *sorted((self.directory / "logs").glob("*.log"))]
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:]) for log in logs
        )

    def _experiment(self, steps: int, wait_s: int | None) -> dict[str, Any]:
        document: dict[str, Any] = yaml.safe_load(TINY.read_text())
        spec = document["spec"]
        spec["servers"] = {"replicas": self._servers, "maxReplicas": self._servers + 1, "device": "cpu"}
        spec["trainer"] = {"nodes": self._nodes, "processesPerNode": 1, "device": "cpu"}
        spec["trainer"]["resources"] = {"requests": {"cpu": 2}, "limits": {"cpu": 2}}
        spec["storage"]["accessModes"] = ["ReadWriteMany"]
        spec["runPolicy"] = {"backoffLimit": 10}
        if wait_s is not None:
            spec["runPolicy"]["preRunningDeadlineSeconds"] = wait_s
        config = spec["config"]
        config |= {"cluster": {"fileroot": str(self._work)}, "trial_name": self._trial, "total_train_steps": steps}
        config |= {"evaluator": {"freq_steps": 1000}, "recover": {"freq_steps": 3}}
        config["valid_dataset"]["limit"] = 32
        return document


def _run_of(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("AREAL_RUN_DIR", ""))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def _die_with_the_tests() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
