"""One Ray cluster of three nodes for all tests of this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from faults.ray_injectors import DECK
from faults.report import Report
from hack.testbed.ray_cluster import RayCluster

REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """Three nodes of three CPUs; all but the first declare two GPUs that do not exist."""
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(RayCluster(cpus=3, gpus=2))
        except TimeoutError as error:
            pytest.skip(f"this machine is too busy for a Ray cluster: {error}")
        yield cluster


@pytest.fixture
def fault_report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash.setdefault(REPORT, Report("faults on Ray", DECK, ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (report := config.stash.get(REPORT, None)) is not None:
        report.show(terminalreporter)
