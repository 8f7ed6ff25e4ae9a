"""A real run on Slurm still learns while its processes, its job and the cluster's daemons are killed and stopped.

``make faults-slurm`` injects more: ``FAULTS`` sets how many, ``SEED`` which, when and where.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from faults.report import Report
from faults.series import PER_CLUSTER_RUN, seeded, survive_in_cluster
from faults.slurm_injectors import INJECTORS
from faults.watched_slurm import WatchedSlurm
from hack.testbed.slurm_cluster import SlurmCluster


@pytest.mark.scenario
@seeded(PER_CLUSTER_RUN, per_run=PER_CLUSTER_RUN)
def test_a_run_on_slurm_with_injected_faults_loses_nothing_and_learns(
    cluster: SlurmCluster, seed: int, faults: int, tmp_path: Path, fault_report: Callable[..., Report]
) -> None:
    report = fault_report("faults on Slurm", INJECTORS)
    survive_in_cluster(WatchedSlurm(cluster, tmp_path), INJECTORS, seed, faults, target="faults-slurm", report=report)
