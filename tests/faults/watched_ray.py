"""A run on a Ray cluster into which faults are injected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from faults.watched_cluster import WatchedCluster
from hack.testbed.ray_cluster import RayCluster
from support.ray_runs import left_behind


class WatchedRay(WatchedCluster):
    """``grpo run --on ray``, the driver. A node of three CPUs holds one rank and one server."""

    def __init__(self, cluster: RayCluster, work: Path) -> None:
        super().__init__("ray", work, cluster.environment())
        self.cluster = cluster

    def sections(self) -> dict[str, dict[str, Any]]:
        """A run waits for its nodes to come back."""
        two = {"requests": {"cpu": 2}, "limits": {"cpu": 2}}
        return {"trainer": {"resources": two}, "runPolicy": {"preRunningDeadlineSeconds": 600}}

    def jobs_left(self) -> list[str]:
        """Actors and placement groups."""
        return left_behind(self.cluster)

    def nodes(self) -> list[int]:
        """Nodes of the cluster that hold ranks, the head left out."""
        hosts = {(self.run / "locks" / name).read_text() for name in ("trainer", "trainer-1")}
        return [index for index in (1, 2) if self.cluster.host(index) in hosts]
