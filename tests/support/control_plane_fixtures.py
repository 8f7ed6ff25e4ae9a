"""Session fixtures of tests/control_plane and tests/hostile: one control plane, simulated nodes and an operator."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster.control_plane import ControlPlane
from hack.testbed.control_planes import bare_plane, prepare
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import FakeKubelet
from hack.testbed.kube_api import Api
from hack.testbed.operator_process import OperatorProcess


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with bare_plane(tmp_path_factory.mktemp("plane")) as plane:
        prepare(plane, tmp_path_factory.mktemp("rights"))
        yield plane


@pytest.fixture(scope="session")
def api(plane: ControlPlane) -> Api:
    return Api(plane.url, plane.ca, plane.token())


@pytest.fixture(scope="session")
def kubelet(api: Api) -> Iterator[FakeKubelet]:
    kubelet = FakeKubelet(api)
    kubelet.start()
    yield kubelet
    kubelet.stop()


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operators")


@pytest.fixture(scope="session")
def operator(plane: ControlPlane, logs: Path) -> Iterator[OperatorProcess]:
    """The operator that most tests share; a test that stops it must start it again."""
    operator = OperatorProcess(plane, logs)
    operator.start()
    yield operator
    operator.stop()


@pytest.fixture
def namespace(api: Api, kubelet: FakeKubelet, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """An empty namespace that enforces the Pod Security level "restricted"."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    name += f"-{secrets.token_hex(4)}"  # parameters may be cut off, and a failed test may run once more
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}})
    yield Namespace(api, kubelet, name)
    kubelet.stuck.discard(name)
    for body in api.list("GRPOExperiment", name):
        api.delete("GRPOExperiment", name, body["metadata"]["name"])


@pytest.fixture
def experiment(namespace: Namespace, operator: OperatorProcess) -> Experiment:
    """The smallest experiment, not created yet, with a running operator."""
    return Experiment(namespace)
