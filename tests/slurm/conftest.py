"""A Slurm cluster of three nodes for the tests of this folder, and a run on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.report import Report
from faults.slurm_injectors import DECK
from hack.testbed import slurm_cluster
from hack.testbed.slurm_cluster import SlurmCluster
from support.slurm_runs import SlurmRun

REPORT = pytest.StashKey[Report]()


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


@pytest.fixture
def fault_report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash.setdefault(REPORT, Report("faults on Slurm", DECK, ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (report := config.stash.get(REPORT, None)) is not None:
        report.show(terminalreporter)
