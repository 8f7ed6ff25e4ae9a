"""Experiments from Python: ``Experiment.from_yaml(…)``, then ``run``, ``follow``, ``history``, ``rollouts`` and more.

The commands of ``grpo`` use the same objects: ``RunDirectory`` on this machine, ``ClusterRun`` in Kubernetes.

    from areal_launcher.client import Experiment

    experiment = Experiment.from_yaml("examples/tiny/experiment.yaml", "config.total_train_steps=20")
    experiment.run()
    print(experiment.history()["task_reward/avg"])
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self

from areal_api import names
from areal_api.experiment import GRPOExperiment
from areal_api.load import with_home_expanded
from areal_launcher import run_files
from areal_launcher.errors import RunError
from areal_launcher.request import Request
from areal_launcher.run_directory import RunDirectory
from areal_launcher.run_status import RunStatus

if TYPE_CHECKING:
    import pandas as pd

    from areal_launcher.cluster.client import ClusterTarget

START_TIMEOUT_S = 120.0  # from the start of grpo run until it has checked the experiment and claimed the directory
POLL_S = 0.2


class PlacedRun(Protocol):
    """A run wherever it executes."""

    def status(self) -> RunStatus: ...
    def follow(self, *, poll_s: float = 1.0) -> Iterator[RunStatus]: ...
    def stop(self, *, now: bool = False) -> None: ...
    def scale(self, servers: int) -> None: ...
    def history(self) -> pd.DataFrame: ...
    def rollouts(self, steps: Sequence[int] | None = None) -> pd.DataFrame: ...


class Experiment:
    """An experiment on this machine or in a Kubernetes cluster.

    Methods raise ``ValueError`` for what the caller can change and ``RunError`` for a run that failed.
    """

    def __init__(self, request: Request, *, target: ClusterTarget | None = None) -> None:
        """``target``: the cluster; None is this machine. Raises ``ValueError`` for an invalid experiment."""
        self._request = request
        self._target = target
        self.definition: GRPOExperiment = request.load()

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        *overrides: str,
        on: Literal["local", "kubernetes"] = "local",
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | None = None,
    ) -> Self:
        """The experiment in a file, with ``key=value`` overrides as for ``grpo run``."""
        request = Request(Path(path), None, list(overrides))
        if on == "local":
            if (namespace, context, kubeconfig) != (None, None, None):
                raise ValueError('namespace, context and kubeconfig select a cluster; pass on="kubernetes"')
            return cls(request)
        from areal_launcher.cluster.client import ClusterTarget

        return cls(request, target=ClusterTarget(kubeconfig, context, namespace))

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.definition.name

    @property
    def directory(self) -> Path:
        """The run directory; in Kubernetes where ``run`` puts the results."""
        return names.run_dir(with_home_expanded(self.definition).spec.config)

    def run(self, *, wait: bool = True) -> RunStatus:
        """Train, or continue from the last recovery checkpoint.

        ``wait``: show the progress and return when the run has ended; else return once it has been accepted, and the
        run continues without this process. Raises ``RunError`` if the run fails.
        """
        if self._target is not None:
            from areal_launcher.cluster.run import run as run_in_cluster

            _require_success(
                run_in_cluster(self._request, self._target, detach=not wait, results=None, checkpoint=False)
            )
        elif wait:
            from areal_launcher.places.local.train import train

            _require_success(train(self._request, None))
        else:
            _start(self._request, self.directory)
        return self.status()

    def status(self) -> RunStatus:
        """What the run is doing now."""
        return self._placed().status()

    def follow(self, *, poll_s: float = 1.0) -> Iterator[RunStatus]:
        """The status now and whenever it has changed, until the run has ended."""
        return self._placed().follow(poll_s=poll_s)

    def history(self) -> pd.DataFrame:
        """The statistics, a row for each step; the columns are those of stats.jsonl."""
        return self._placed().history()

    def rollouts(self, steps: Sequence[int] | None = None) -> pd.DataFrame:
        """The samples of ``steps``, by default of the newest one, with the columns of docs/rollouts.md."""
        return self._placed().rollouts(steps)

    def stop(self, *, now: bool = False) -> None:
        """End the run: after a recovery checkpoint, or at once with ``now``."""
        self._placed().stop(now=now)

    def suspend(self) -> None:
        """End the run after a recovery checkpoint, from which ``resume`` and ``run`` continue it."""
        self._placed().stop()

    def resume(self) -> None:
        """Continue a suspended run without waiting for it."""
        if self._target is None:
            _start(self._request, self.directory)
            return
        from areal_launcher.cluster.control import ClusterRun

        ClusterRun(self.name, self._target).resume()

    def scale(self, servers: int) -> None:
        """Change the number of servers while the run trains, up to ``servers.maxReplicas``."""
        self._placed().scale(servers)

    def _placed(self) -> PlacedRun:
        if self._target is None:
            return RunDirectory(self.directory)
        from areal_launcher.cluster.control import ClusterRun

        return ClusterRun(self.name, self._target)


def _require_success(status: int) -> None:
    if status:
        raise RunError(f"the run ended with status {status}", status=status)


def _start(request: Request, directory: Path) -> None:
    """Start ``grpo run`` in its own session; returns once it has claimed the run directory, or has succeeded.

    Raises ``RunError`` with the last lines of its output if it ends before, or takes too long.
    """
    words = [str(request.path), *request.overrides]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "areal_launcher.cli", "run", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while run_files.launcher_pid(directory) != process.pid:
            if process.poll() == 0:  # nothing was left to do
                return
            if process.poll() is not None:
                output.seek(0)
                lines = output.read().decode(errors="replace").splitlines()
                raise RunError("grpo run ended before the run had started", lines=lines[-20:])
            if time.monotonic() > deadline:
                process.terminate()
                raise RunError(f"grpo run did not claim {directory} within {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)
