"""A cluster without IPv4: the API server, the Services and the operator's own service have only IPv6 addresses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster.control_plane import ControlPlane
from hack.testbed.control_planes import bare_plane, prepare
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import FakeKubelet, end
from hack.testbed.kube_api import Api
from hack.testbed.operator_process import OperatorProcess
from support.progress import post, token_of, url_of


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with bare_plane(tmp_path / "plane", ipv6=True) as plane:
        prepare(plane, tmp_path)
        yield plane


def test_an_experiment_runs_in_a_cluster_with_only_ipv6(plane: ControlPlane, tmp_path: Path) -> None:
    api = Api(plane.url, plane.ca, plane.token())
    kubelet, operator = FakeKubelet(api), OperatorProcess(plane, tmp_path, host="[::1]")
    kubelet.start()
    try:
        operator.start()
        api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "six"}})
        experiment = Experiment(Namespace(api, kubelet, "six")).apply()
        experiment.until_phase("Running")
        services = experiment.namespace.list("Service")
        assert {family for one in services for family in one["spec"]["ipFamilies"]} == {"IPv6"}
        assert post(url_of(experiment, operator), token_of(experiment), {"step": 1}).status_code == 202
        experiment.until(lambda now: now.get("step") == 1, "the report")
        experiment.namespace.behave("trainer", end(0))
        experiment.until_phase("Succeeded")
    finally:
        operator.stop()
        kubelet.stop()
