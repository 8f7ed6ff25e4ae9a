"""A control plane with the real Kueue, simulated nodes and the operator. ``make kueue`` runs these tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster.control_plane import BuildError, ControlPlane
from hack.testbed.control_planes import bare_plane, prepare
from hack.testbed.experiments import Namespace
from hack.testbed.kueue import USER, KueueProcess, Queues
from hack.testbed.operator_process import OperatorProcess
from support.queued_experiments import MakeExperiment, maker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kueue takes minutes to build, so ``make test`` leaves these tests out. Tests of outages run last."""
    items.sort(key=lambda item: "outages" in item.path.name)
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.scenario)


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with bare_plane(tmp_path_factory.mktemp("plane"), admins=[USER]) as plane:
        prepare(plane, tmp_path_factory.mktemp("rights"))
        yield plane


@pytest.fixture(scope="session")
def kueue(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KueueProcess]:
    """The Kueue that all tests share; a test that stops it must start it again."""
    try:
        process = KueueProcess(plane, tmp_path_factory.mktemp("kueue"))
    except (BuildError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no Kueue to test against: {error}")
    process.install()
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def operator(plane: ControlPlane, kueue: KueueProcess, logs: Path) -> Iterator[OperatorProcess]:
    """The operator that all tests share, with Kueue enabled."""
    operator = OperatorProcess(plane, logs)
    operator.start(AREAL_KUEUE="true")
    yield operator
    operator.stop()


@pytest.fixture
def queues(namespace: Namespace, kueue: KueueProcess) -> Queues:
    """Makes queues for the namespace of a test."""
    return Queues(namespace.api, namespace.name[-8:])


@pytest.fixture
def make(namespace: Namespace, operator: OperatorProcess) -> MakeExperiment:
    """Makes experiments in queues, with a running operator."""
    return maker(namespace)
