"""The tiny example in pods of the kind cluster against ``grpo run`` on the same machine. Needs ``make cluster``."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Comparison, spread
from benchmarks.runs import grpo_run
from hack.cluster.kind_cluster import KindCluster
from hack.testbed.cluster_runs import ClusterRun
from hack.testbed.helm_release import Release

NAMESPACE = "areal-benchmark"
STEPS = 60
PAUSE_S = 0.2


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Steps per second. A round is one run in pods, in which a server is killed once, and one local run."""
    steps, rounds = (4, 1) if small else (STEPS, min(rounds, 3))
    ours: list[float] = []
    here: list[float] = []
    starts: list[float] = []
    replaced: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        cluster = KindCluster.find(Path(folder))
        release = Release(cluster, cluster.image_tag)
        release.install("experiment.enabled=false")
        try:
            for number in range(rounds):
                local = grpo_run(Path(folder) / "tiny" / f"run{number}", f"config.total_train_steps={steps}")
                here.append(local.rate)
                pods = _Pods(cluster, steps)
                starts.append(pods.first_step_s)
                replaced.append(pods.replaced_s)
                ours.append(pods.rate)
        finally:
            release.uninstall()
    notes = [
        f"kubectl apply → first training step: {spread(starts)} s, images on the node",
        f"a killed server's pod → its replacement holds the newest weights: {spread(replaced)} s",
    ]
    work = f"{steps} steps of examples/tiny, one server and one trainer"
    return [Comparison("cluster", work, "steps/s", ours, "grpo run on this machine", here, notes=notes)]


class _Pods:
    """One run in pods, from ``kubectl apply`` to its end."""

    def __init__(self, cluster: KindCluster, steps: int) -> None:
        cluster.kubectl("create", "namespace", NAMESPACE)
        try:
            self._run = ClusterRun(cluster, NAMESPACE, changes={"config.total_train_steps": steps})
            began = time.monotonic()
            self._run.apply()
            self.first_step_s = self._until(lambda: bool(self._run.status.get("step"))) - began
            self.replaced_s = self._replace_server()
            self._run.until_phase("Succeeded", timeout_s=600.0)
            lines = self._run.stats()
        finally:
            cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=240s")
        # Exclude the first step and those during which the server was missing.
        self.rate = 1 / statistics.fmean(line["seconds_per_step"] for line in lines[1:])

    def _replace_server(self) -> float:
        """Seconds until the replacement of a killed pod holds weights that the trainer has published."""
        began = time.monotonic()
        self._run.kill_pod("server")
        return self._until(lambda: any(self._run.version_held(pod) > 0 for pod in self._run.pods("server"))) - began

    def _until(self, holds: Callable[[], bool]) -> float:
        deadline = time.monotonic() + 300.0
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"timed out after 300 s; the status is {json.dumps(self._run.status)}")
            time.sleep(PAUSE_S)
        return time.monotonic()
