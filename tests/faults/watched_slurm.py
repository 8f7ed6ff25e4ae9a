"""A real run of the tiny experiment on a Slurm cluster, watched from outside while faults are injected."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from areal_launcher.places.slurm.job import read_job
from faults import processes
from faults.steps import LocalFiles, Steps, Watched
from faults.watched import CHECKPOINT_STEPS, POLL_S, ROOT, TINY
from hack.testbed.slurm_cluster import SlurmCluster, command_lines

SERVERS = RANKS = 2
STEPS = 80  # it learns in 60


class WatchedSlurm(Watched):
    """``grpo run --on slurm`` on three nodes. Entering the context starts it."""

    patience_s = 300.0  # a job that is queued again starts after about a minute

    def __init__(self, cluster: SlurmCluster, work: Path) -> None:
        self.cluster = cluster
        self.total = STEPS
        self.run = work / "runs" / "tiny" / "run"
        self.steps = Steps(LocalFiles(self.run))
        self.may_fail = False  # whether grpo may exit with an error and is then restarted
        self._work = work
        self._mark = f"slurm-{os.getpid()}"
        self._follower: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WatchedSlurm:
        self._write_experiment()
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.follower.kill()
        self.follower.wait()
        self.cluster.command("scancel", "--name=grpo-tiny-run", check=False)
        processes.wait_until_gone(self._mark)

    @property
    def follower(self) -> subprocess.Popen[bytes]:
        """``grpo run``."""
        assert self._follower is not None
        return self._follower

    def start(self) -> None:
        """Run the launch command; restarts use the same command."""
        with (self._work / "console.log").open("ab") as console:
            self._follower = subprocess.Popen(
                [*self._grpo("run"), str(self._work / "experiment.yaml"), "--on", "slurm"],
                cwd=ROOT,
                env=self._environment,
                stdout=console,
                stderr=console,
            )

    def stop(self, *options: str) -> None:
        """``grpo stop``, and wait until the run has ended."""
        argv = [*self._grpo("stop"), str(self.run), "--on", "slurm", *options]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        self.follower.wait(self.patience_s)

    def find(self, *words: str) -> list[int]:
        """Processes of the run whose command line contains ``words``, but not what starts and supervises them."""
        found = [pid for pid, text in command_lines() if all(word in f"{text} " for word in words)]
        return [pid for pid in found if str(self.run) in files_of(pid) and "srun" not in name_of(pid)]

    def sruns(self, name: str) -> list[int]:
        """The srun of a step."""
        found = [pid for pid, text in command_lines() if f"--job-name={name} " in text and str(self.run) in text]
        return [pid for pid in found if name_of(pid) == "srun"]

    def nodes(self) -> list[str]:
        """Nodes of the job; empty if it does not run."""
        job = read_job(self.run)
        if job is None:
            return []
        shown = self.cluster.command("squeue", "--noheader", f"--jobs={job.id}", "--format=%T %N", check=False).split()
        if len(shown) != 2 or shown[0] != "RUNNING":
            return []
        return self.cluster.command("scontrol", "show", "hostnames", shown[1]).split()

    def check_nothing_left(self) -> None:
        """Raises ``AssertionError`` if a process or the job survives the run."""
        left = processes.wait_until_gone(self._mark)
        assert not left, f"processes outlive the run: {left}"
        self.tick_until(lambda: not self.cluster.jobs(), "the job to leave the queue")
        assert not (self.run / "api-key").exists()

    def tick(self) -> None:
        """Poll everything once. Restarts a grpo that ended and was allowed to."""
        time.sleep(POLL_S)
        self.steps.poll()
        status = self.follower.poll()
        if status is None or self.finished:
            return
        assert self.may_fail, f"grpo run exited with status {status}:\n{self.console()}"
        self.start()

    def fault_survived(self) -> None:
        """From now on grpo must not exit."""
        self.may_fail = False

    def console(self) -> str:
        """The last output of grpo, the job and the trainer."""
        logs = [self._work / "console.log", *(self.run / "logs" / f"{name}.log" for name in ("slurm-job", "trainer"))]
        texts = [f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists()]
        return "\n".join([*texts, "--- squeue", *self.cluster.jobs()])

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.cluster.environment, processes.MARK: self._mark, "OMP_NUM_THREADS": "1"}

    def _grpo(self, command: str) -> list[str]:
        return [sys.executable, "-m", "areal_launcher.cli", command]

    def _write_experiment(self) -> None:
        experiment = yaml.safe_load((TINY / "experiment.yaml").read_text())
        spec = experiment["spec"]
        spec["servers"] |= {"replicas": SERVERS}
        spec["trainer"] |= {"nodes": RANKS}
        spec["storage"] = {"accessModes": ["ReadWriteMany"]}
        spec["slurm"] = {"nodes": 3}
        spec["runPolicy"] = {"backoffLimit": 1000}
        spec["config"] |= {"trial_name": "run", "total_train_steps": STEPS, "evaluator": {"freq_steps": 1000}}
        spec["config"] |= {"cluster": {"fileroot": str(self._work / "runs")}}
        spec["config"] |= {"recover": {"freq_steps": CHECKPOINT_STEPS}}
        spec["config"]["rollout"] |= {"dump_to_file": True, "dump_max_bytes": 64 << 20}
        self._work.mkdir(parents=True, exist_ok=True)
        (self._work / "experiment.yaml").write_text(yaml.safe_dump(experiment))


def files_of(pid: int) -> str:
    """Command line and environment of a process; empty if it has ended."""
    proc = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        return ((proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()).decode(errors="replace")
    return ""


def name_of(pid: int) -> str:
    """Name of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def kill(pids: list[int]) -> None:
    """Kill processes; those that have ended are ignored."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
