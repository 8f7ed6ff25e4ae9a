"""Runs on a Ray cluster, started by ``grpo run --on ray`` and watched from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray.util import placement_group_table

from areal_launcher.places.ray.connection import connect
from areal_launcher.run_files import read_servers
from hack.cluster.control_plane import die_with_parent
from hack.testbed.ray_cluster import RayCluster, arguments

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny" / "experiment.yaml"
GRPO = [sys.executable, "-m", "areal_launcher.cli"]
STAND_IN = Path(__file__).parent / "slurm_stand_in.py"
STEP_S = 400.0  # for the next step, with restarts in between, on a busy machine
END_S = 900.0  # for a run of real servers and a real trainer
ROOM_S = 600  # for what an earlier run has held


class RayRun:
    """The tiny experiment. A node of the trainer needs two CPUs and a server one: three CPUs hold one of each."""

    def __init__(self, cluster: RayCluster, work: Path, trial: str, *, servers: int = 2, nodes: int = 2) -> None:
        self._cluster = cluster
        self._work = work
        self._trial = trial
        self._servers = servers
        self._nodes = nodes
        self.directory = work / "tiny" / trial
        self.console = work / f"{trial}.log"
        self.file = work / f"{trial}.yaml"

    def start(self, *options: str, steps: int, wait_s: int = ROOM_S, **settings: Any) -> subprocess.Popen[bytes]:
        """Start ``grpo run --on ray``. ``settings`` replace sections of the experiment's ``spec``."""
        self.write(steps, wait_s, **settings)
        return self.run("--on", "ray", str(self.file), *options)

    def write(self, steps: int, wait_s: int | None = ROOM_S, **settings: Any) -> None:
        """Write the experiment. ``wait_s``: for how long it waits for room, None not at all."""
        document = self._experiment(steps)
        document["spec"] |= settings
        if wait_s is not None:
            document["spec"]["runPolicy"]["preRunningDeadlineSeconds"] = wait_s
        self.file.write_text(yaml.safe_dump(document))

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``grpo run`` with the console in a file."""
        with self.console.open("ab") as console:
            return subprocess.Popen(
                [*GRPO, "run", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=console,
                stderr=console,
                preexec_fn=die_with_parent,
                process_group=0,
            )

    def grpo(self, *arguments: str) -> tuple[int, str]:
        """Run a command of grpo; exit status and output."""
        done = subprocess.run(
            [*GRPO, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=STEP_S,
            check=False,
        )
        return done.returncode, done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """Variables of grpo."""
        return self._cluster.environment() | {"OMP_NUM_THREADS": "1"}

    def steps(self) -> list[dict[str, Any]]:
        """The complete lines of stats.jsonl."""
        try:
            text = (self.directory / "stats.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_for_step(self, step: int, launcher: subprocess.Popen[bytes] | None) -> None:
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
        self.send(signal.SIGKILL, *words)

    def send(self, number: signal.Signals, *words: str) -> None:
        """Signal the first process with these words."""
        self.processes(*words)[0].send_signal(number)

    def output(self) -> str:
        """The last output of launcher and processes."""
        logs = [self.console, *sorted((self.directory / "logs").glob("*.log"))]
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:]) for log in logs
        )

    def _experiment(self, steps: int) -> dict[str, Any]:
        document: dict[str, Any] = yaml.safe_load(TINY.read_text())
        spec = document["spec"]
        spec |= self._sections()
        config = spec["config"]
        config |= {"cluster": {"fileroot": str(self._work)}, "trial_name": self._trial, "total_train_steps": steps}
        config |= {"evaluator": {"freq_steps": 1000}, "recover": {"freq_steps": 3}}
        return document

    def _sections(self) -> dict[str, Any]:
        return {
            "servers": {"replicas": self._servers, "maxReplicas": self._servers + 1, "device": "cpu"},
            "trainer": {
                "nodes": self._nodes,
                "processesPerNode": 1,
                "device": "cpu",
                "resources": {"requests": {"cpu": 2}, "limits": {"cpu": 2}},
            },
            "storage": {"size": "1Gi", "accessModes": ["ReadWriteMany"]},
            "runPolicy": {"backoffLimit": 10},
        }


class StandInRun(RayRun):
    """A run whose servers and trainer are fast stand-ins, which ``PYTHONPATH`` puts before the real modules."""

    def hold(self) -> None:
        """Make the trainer wait after its next step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "hold").touch()

    def resume(self) -> None:
        """End the wait."""
        (self.directory / "hold").unlink()

    def _experiment(self, steps: int) -> dict[str, Any]:
        modules = self._work / "modules"
        for package, module, code in (("areal_server", "launch", SERVER), ("torch/distributed", "run", TRAINER)):
            (modules / package).mkdir(parents=True, exist_ok=True)
            for folder in (modules / package, (modules / package).parent):
                if folder != modules:
                    (folder / "__init__.py").touch()
            (modules / package / f"{module}.py").write_text(PREPARE.format(folder=str(STAND_IN.parent)) + code)
        model = self._work / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        (self._work / "train.jsonl").write_text('{"question": "1 + 1", "answer": "#### 2"}\n')
        spec = self._sections()
        path = {"name": "PYTHONPATH", "value": str(modules)}
        spec["servers"]["env"] = [path]
        spec["trainer"]["env"] = [path, {"name": "STEPS", "value": str(steps)}]
        spec["config"] = {
            "experiment_name": "tiny",
            "trial_name": self._trial,
            "cluster": {"fileroot": str(self._work)},
            "actor": {"path": str(model)},
            "train_dataset": {"path": str(self._work / "train.jsonl"), "batch_size": 4},
            "recover": {"freq_steps": 5},
        }
        return {
            "apiVersion": "areal.dev/v1alpha1",
            "kind": "GRPOExperiment",
            "metadata": {"name": "tiny"},
            "spec": spec,
        }


PREPARE = """
import os, sys
sys.path.insert(0, {folder!r})
os.environ.setdefault("SLURMD_NODENAME", os.environ.get("AREAL_TEST_RAY_NODE", "?"))
import slurm_stand_in
"""
SERVER = """
slurm_stand_in.serve(sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1]))
"""
TRAINER = """
slurm_stand_in.train(int(sys.argv[sys.argv.index("--node-rank") + 1]))
"""


def left_behind(cluster: RayCluster) -> list[str]:
    """Actors and placement groups of the cluster that are not gone."""
    connect(cluster.address)
    try:
        actors = [f"actor {a['ActorClassName']}" for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
        groups = [
            group["placement_group_id"] for group in placement_group_table().values() if group["state"] != "REMOVED"
        ]
        return [*actors, *groups]
    finally:
        ray.shutdown()


def _run_of(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("AREAL_RUN_DIR", ""))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
