"""A real run on a Ray cluster still learns while its processes, actors, driver and nodes are killed and stopped.

``make faults-ray`` injects more: ``FAULTS`` sets how many, ``SEED`` which, when and where.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from faults.ray_injectors import INJECTORS
from faults.report import Report
from faults.series import PER_CLUSTER_RUN, seeded, survive_in_cluster
from faults.watched_ray import WatchedRay
from hack.testbed.ray_cluster import RayCluster


@pytest.mark.scenario
@seeded(PER_CLUSTER_RUN, per_run=PER_CLUSTER_RUN)
def test_a_run_on_ray_with_injected_faults_loses_nothing_and_learns(
    cluster: RayCluster, seed: int, faults: int, tmp_path: Path, fault_report: Callable[..., Report]
) -> None:
    report = fault_report("faults on Ray", INJECTORS)
    survive_in_cluster(WatchedRay(cluster, tmp_path), INJECTORS, seed, faults, target="faults-ray", report=report)
