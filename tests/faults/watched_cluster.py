"""A real run of the tiny experiment on a Slurm or Ray cluster, watched from outside while faults are injected."""

from __future__ import annotations

import abc
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from faults import processes
from faults.steps import LocalFiles, Steps, Watched
from faults.watched import CHECKPOINT_STEPS, POLL_S, ROOT, TINY
from hack.cluster.control_plane import die_with_parent

GRPO = [sys.executable, "-m", "areal_launcher.cli"]
SERVERS = RANKS = 2
STEPS = 80  # it learns in 60
END_S = 400.0  # for what is left of a run to end
CONSOLE_LINES = 40


class WatchedCluster(Watched):
    """``grpo run --on PLACE`` with two servers, and two ranks on different nodes. Entering the context starts it."""

    total = STEPS
    patience_s = 600.0  # a lost node, a job that is queued again, and a trainer that resumes, on a busy machine

    def __init__(self, place: str, work: Path, environment: Mapping[str, str]) -> None:
        self.run = work / "tiny" / "run"
        self.steps = Steps(LocalFiles(self.run))
        self.may_fail = False  # whether grpo may exit with an error and is then restarted
        self._place = place
        self._work = work
        self._environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
        self._launcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WatchedCluster:
        self._write_experiment()
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._launcher is not None:
            self._launcher.kill()
            self._launcher.wait()

    @abc.abstractmethod
    def sections(self) -> dict[str, dict[str, Any]]:
        """What the place adds to the sections of the experiment's ``spec``."""

    @abc.abstractmethod
    def jobs_left(self) -> list[str]:
        """What the cluster still holds for a run that has ended."""

    @property
    def launcher(self) -> subprocess.Popen[bytes]:
        """``grpo run``."""
        assert self._launcher is not None, "enter the run first"
        return self._launcher

    def start(self) -> None:
        """Run the launch command; restarts use the same command."""
        with self._console.open("ab") as console:
            self._launcher = subprocess.Popen(
                [*GRPO, "run", "--on", self._place, str(self._work / "experiment.yaml")],
                cwd=ROOT,
                env=self._environment,
                stdout=console,
                stderr=console,
                preexec_fn=die_with_parent,
            )

    def stop(self, *options: str) -> None:
        """``grpo stop``, and wait until the run has ended."""
        argv = [*GRPO, "stop", str(self.run), "--on", self._place, *options]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=END_S, check=False)
        assert done.returncode == 0, done.stderr
        self.launcher.wait(END_S)

    def find(self, *words: str) -> list[psutil.Process]:
        """Interpreters of the run whose command lines contain ``words``, the supervisors left out."""
        return processes.of_run(self.run, *words)

    def server(self, index: int) -> list[psutil.Process]:
        """A server; empty while it does not run."""
        return self.find("-m areal_server.launch", f"--index {index} ")

    def torchrun(self, node: int) -> list[psutil.Process]:
        """The parent of the ranks on a node of the trainer; empty while it does not run."""
        return self.find("-m torch.distributed.run", f"--node-rank {node} ")

    def ranks(self) -> list[psutil.Process]:
        """The ranks of the trainer."""
        return self.find("-u -m areal_trainer.train")

    def said(self, text: str) -> int:
        """How often ``grpo run`` has printed a text."""
        return self._console.read_text(errors="replace").count(text)

    def check_nothing_left(self) -> None:
        """Raises ``AssertionError`` if a process of the ended run survives, or what it held in the cluster."""
        deadline = time.monotonic() + END_S
        while left := [*self.find(), *self.jobs_left()]:
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(POLL_S)

    def check_stopped(self) -> None:
        """Raises ``AssertionError`` unless a run that was asked to end has left a checkpoint of its last step alone."""
        self.steps.poll()
        last, checkpoint = self.steps.last, self.steps.checkpoint
        # A run that is stopped in its last evaluation writes the statistics of the step when it resumes.
        assert checkpoint == last or checkpoint == last + 1 == self.total, (
            f"no checkpoint of step {last}:\n{self.console()}"
        )
        self.check_nothing_left()
        assert not (self.run / "api-key").exists()

    def tick(self) -> None:
        """Poll everything once. Restarts a grpo that ended and was allowed to."""
        time.sleep(POLL_S)
        self.steps.poll()
        status = self.launcher.poll()
        if status is None or (status == 0 and self.finished):
            return
        assert self.may_fail, f"grpo run exited with status {status}:\n{self.console()}"
        self.start()

    def fault_survived(self) -> None:
        """From now on grpo must not exit."""
        self.may_fail = False

    def finish(self) -> None:
        """Wait for the end of the run."""
        self.advance_to_end()
        self.tick_until(lambda: self.launcher.poll() is not None, "the end of the run", within_s=END_S)
        assert self.launcher.poll() == 0, self.console()
        self.steps.poll()
        self.check_nothing_left()
        assert not (self.run / "api-key").exists()

    def console(self) -> str:
        """The last output of grpo and of the processes."""
        logs = [log for log in (self._console, *sorted((self.run / "logs").glob("*.log"))) if log.exists()]
        texts = [log.read_text(errors="replace").splitlines()[-CONSOLE_LINES:] for log in logs]
        return "\n".join(f"--- {log.name}\n" + "\n".join(text) for log, text in zip(logs, texts, strict=True))

    @property
    def _console(self) -> Path:
        return self._work / "console.txt"

    def _write_experiment(self) -> None:
        """The tiny experiment with frequent checkpoints and rollout dumps."""
        document = yaml.safe_load((TINY / "experiment.yaml").read_text())
        spec = document["spec"]
        spec["servers"] |= {"replicas": SERVERS}
        spec["trainer"] |= {"nodes": RANKS, "processesPerNode": 1}
        spec["storage"] = {"accessModes": ["ReadWriteMany"]}
        spec["runPolicy"] = {"backoffLimit": 1000}
        for name, section in self.sections().items():
            spec[name] = spec.get(name, {}) | section
        config = spec["config"]
        config |= {"cluster": {"fileroot": str(self._work)}, "trial_name": "run", "total_train_steps": STEPS}
        config["rollout"] |= {"dump_to_file": True, "dump_max_bytes": 64 << 20}
        config |= {"evaluator": {"freq_steps": 1000}, "recover": {"freq_steps": CHECKPOINT_STEPS}}
        (self._work / "experiment.yaml").write_text(yaml.safe_dump(document))
