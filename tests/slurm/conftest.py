"""A Slurm cluster of three nodes for the tests of this folder, and a run on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.testbed import slurm_cluster
from hack.testbed.slurm_cluster import SlurmCluster
from support.slurm_runs import SlurmRun


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    reason = slurm_cluster.missing()
    if reason is not None:
        pytest.skip(reason)
    with slurm_cluster.slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=3) as running:
        yield running


@pytest.fixture
def run(cluster: SlurmCluster, tmp_path: Path) -> Iterator[SlurmRun]:
    started = SlurmRun(cluster, tmp_path)
    yield started
    started.end()
