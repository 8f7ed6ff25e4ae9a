"""A real run of the tiny experiment in pods, watched from outside while faults are injected."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from areal_api import resource_names
from faults.injected import Injected
from faults.schedule import STEPS
from faults.small_disk import SIZE
from faults.steps import Files, Steps, Watched
from hack.cluster.node_pods import processes_left, running_container
from hack.testbed.cluster_runs import ClusterRun
from hack.testbed.helm_release import Release
from hack.testbed.kube_api import Object, eventually
from support.node_volume import NodeVolume, node_volume

CHECKPOINT_STEPS = 3
POLL_S = 1.0
END_S = 150.0  # deadline from the last step to phase Succeeded
COUNTED = ("attempt", "restarts", "disruptions")


@dataclass(frozen=True)
class Layout:
    """Pods and volume of a run."""

    servers: int
    trainers: int  # pods with one rank each
    size: str | None = None  # of a volume that can be filled; its data is lost if the node stops


# Alternating by seed. The volume of the first can be filled; the node of the second can be stopped.
ONE_TRAINER, TWO_TRAINERS = Layout(2, 1, SIZE), Layout(2, 2)


@dataclass
class Awaited:
    """A killed server whose replacement is awaited."""

    injected: Injected
    name: str
    container: str  # the killed container
    back: float | None = None  # when its replacement held the latest published weights


class WatchedPods(Watched):
    """A run in pods of the kind cluster."""

    def __init__(self, run: ClusterRun, release: Release, volume: NodeVolume, layout: Layout) -> None:
        self.run = run
        self.release = release
        self.volume = volume
        self.layout = layout
        self.steps = Steps(self._look)
        self.awaited: list[Awaited] = []

    patience_s = 420.0  # the operator's back-off grows with each attempt

    def fault_survived(self) -> None:
        """Nothing to do: no failure is tolerated in pods."""

    def tick(self) -> None:
        """Poll files, status and awaited servers."""
        time.sleep(POLL_S)
        self.steps.poll()
        status = self.run.status
        assert status.get("phase") != "Failed", f"the run has Failed: {status}\n{self.console()}"
        for one in self.awaited:
            if one.back is None and self._is_current(one):
                one.back = time.monotonic()

    def console(self) -> str:
        """The objects and events of the run."""
        return self.run.describe()

    def counts(self) -> dict[str, int]:
        """The status's counters of attempts and their causes."""
        status = self.run.status
        return {name: int(status.get(name) or 0) for name in COUNTED}

    def ready_servers(self) -> int:
        """Number of ready servers according to the status."""
        return int((self.run.status.get("servers") or {}).get("ready") or 0)

    def server(self, name: str) -> Object | None:
        """A server's pod, unless it is terminating."""
        return next((pod for pod in self.run.pods(resource_names.SERVER) if pod["metadata"]["name"] == name), None)

    def finish(self, folder: Path) -> None:
        """Wait for the end of the run and copy its files except models."""
        self.advance_to_end()
        self.run.until_phase("Succeeded", timeout_s=END_S)
        self.steps.poll()
        self.run.fetch(folder, "summary.json", "rollouts")

    def check_nothing_left(self) -> None:
        """Delete the experiment. Raises ``AssertionError`` if anything but its volume survives."""
        self.run.kubectl("delete", "grpo", self.run.name, "--wait=true", "--timeout=60s")
        kinds = "pods,statefulsets,jobs,services,secrets,configmaps,poddisruptionbudgets,networkpolicies"
        eventually(
            lambda: not self.run.get(kinds),
            "all objects of the run except its volume to be deleted",
            240.0,
            pause_s=1.0,
        )
        left = processes_left(self.run.cluster)
        assert not left, f"processes outlive their pods: {left}"

    def _look(self) -> Files:
        # Read the statistics first, so that no checkpoint is seen whose step is not yet in them.
        script = 'cd "$1" || exit 0; cat stats.jsonl; echo; echo ---; ls recover; true'
        stats, _, names = self.run.on_volume(f"({script}) 2>/dev/null").partition("\n---\n")
        return Files(stats.encode(), names.split())

    def _is_current(self, one: Awaited) -> bool:
        pod = self.server(one.name)
        if pod is None or running_container(pod) in ("", one.container):
            return False
        return self.run.version_held(pod) >= self.steps.last - 1


@contextlib.contextmanager
def watched_pods(release: Release, namespace: str, layout: Layout) -> Iterator[WatchedPods]:
    """The tiny experiment with frequent checkpoints and rollout dumps; deleted afterwards."""
    changes = {
        "servers.replicas": layout.servers,
        "trainer.nodes": layout.trainers,
        "runPolicy.backoffLimit": 1000,
        "config.total_train_steps": STEPS,
        "config.rollout.dump_to_file": True,
        "config.rollout.dump_max_bytes": 64 << 20,
        "config.evaluator": {"freq_steps": 1000},
        "config.recover": {"freq_steps": CHECKPOINT_STEPS},
    }
    run = ClusterRun(release.cluster, namespace, changes=changes)
    mode = "ReadWriteOnce" if layout.trainers == 1 else "ReadWriteMany"
    with node_volume(run, mode, size=layout.size) as volume:
        run.apply().until_step(1, timeout_s=420.0)
        yield WatchedPods(run, release, volume, layout)
