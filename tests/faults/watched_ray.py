"""A real run of the tiny experiment on a Ray cluster, watched from outside while faults are injected."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

from faults.steps import LocalFiles, Steps, Watched
from hack.testbed.ray_cluster import RayCluster
from support.ray_runs import RayRun, left_behind

STEPS = 80  # it learns in 60
POLL_S = 0.1
END_S = 240.0  # for what is left of a run to end


class WatchedRay(Watched):
    """``grpo run --on ray`` with two servers, and two ranks on different nodes. Entering the context starts it."""

    total = STEPS
    patience_s = 400.0  # a lost node, and a trainer that resumes, on a busy machine

    def __init__(self, cluster: RayCluster, work: Path) -> None:
        self.cluster = cluster
        self.run = RayRun(cluster, work, "faults")
        self.steps = Steps(LocalFiles(self.run.directory))
        self._launcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WatchedRay:
        self.run.write(STEPS, wait_s=600, runPolicy={"backoffLimit": 1000}, dump=True)
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._launcher is not None:
            self._launcher.kill()
            self._launcher.wait()

    @property
    def launcher(self) -> subprocess.Popen[bytes]:
        """``grpo run``, the driver."""
        assert self._launcher is not None, "enter the run first"
        return self._launcher

    def start(self) -> None:
        """Run the launch command; restarts use the same command."""
        self._launcher = self.run.run("--on", "ray", str(self.run.file))

    def check_nothing_left(self) -> None:
        """Raises ``AssertionError`` if a process, an actor or a placement group of the ended run survives."""
        deadline = time.monotonic() + END_S
        while left := [*self.run.processes(), *left_behind(self.cluster)]:
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(POLL_S)

    def tick(self) -> None:
        """Poll everything once."""
        time.sleep(POLL_S)
        self.steps.poll()
        status = self.launcher.poll()
        assert status is None or (status == 0 and self.finished), f"grpo run exited with {status}:\n{self.console()}"

    def fault_survived(self) -> None:
        """Nothing to do: only the faults themselves end the launcher."""

    def finish(self) -> None:
        """Wait for the end of the run."""
        self.advance_to_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.launcher.wait(END_S)
        assert self.launcher.poll() == 0, self.console()
        self.steps.poll()

    def console(self) -> str:
        """The last output of launcher and processes."""
        return self.run.output()
