"""``grpo --on kubernetes`` on misconfigured clusters: a control plane without an operator."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from areal_api.generate.crd import FILE
from areal_launcher import cli
from hack.cluster.control_plane import ControlPlane, free_ports
from hack.testbed.control_planes import bare_plane
from hack.testbed.experiment_case import Case
from hack.testbed.kube_api import Api, eventually

USER = "someone"
RIGHTS = {"apiGroups": ["areal.dev"], "resources": ["grpoexperiments"], "verbs": ["get", "list", "create", "patch"]}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane without our resource definition."""
    with bare_plane(tmp_path_factory.mktemp("bare"), USER) as plane:
        yield plane


@pytest.fixture
def bare_api(bare: ControlPlane) -> Iterator[Api]:
    """Its API; removes the operator's Lease after each test."""
    api = Api(bare.url, bare.ca, bare.token())
    yield api
    api.delete("Lease", "default", "areal-operator")


@pytest.fixture(scope="module")
def defined(bare: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    """The control plane with an older resource definition, which lacks a configuration key."""
    older = yaml.safe_load(FILE.read_text())
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["config"]["properties"]["seed"]
    path = tmp_path_factory.mktemp("definition") / "older.yaml"
    path.write_text(yaml.safe_dump(older))
    bare.define(path)
    return bare  # its storage is still being set up: 429 for a second


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(Case("", {"metadata.name": "exp"}).experiment()))
    return str(path)


def place(plane: ControlPlane, user: str = "admin") -> list[str]:
    return ["--on", "kubernetes", "--kubeconfig", str(plane.kubeconfig(user))]


def lease(*, age_s: float) -> dict[str, object]:
    """An operator's Lease last renewed ``age_s`` ago."""
    renewed = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "areal-operator", "namespace": "default"},
        "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 15, "renewTime": renewed},
    }


# Must run first: later tests use the definition.
def test_a_missing_definition_is_reported_with_the_install_command(
    bare: ControlPlane, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["run", file], ["status"]):
        assert cli.main([*arguments, *place(bare)]) == 1
        error = capfd.readouterr().err
        assert "has no resource grpoexperiments.areal.dev" in error
        assert "helm install areal-gsm8k helm/areal-gsm8k" in error


def test_a_missing_operator_is_reported_with_the_install_command(
    defined: ControlPlane, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", file, *place(defined)]) == 1
    assert "no operator has ever run" in capfd.readouterr().err


def test_a_stopped_operator_is_reported_before_anything_is_created(
    defined: ControlPlane, bare_api: Api, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bare_api.create(lease(age_s=60.0), "default")
    assert cli.main(["run", file, *place(defined)]) == 1
    error = capfd.readouterr().err
    assert "the operator in namespace default is not running: its Lease was last renewed at" in error
    assert "kubectl -n default get pods" in error
    assert bare_api.get("GRPOExperiment", "default", "exp") is None


def test_an_outdated_definition_is_reported(
    defined: ControlPlane, bare_api: Api, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bare_api.create(lease(age_s=0.0), "default")
    assert cli.main(["run", file, *place(defined), "--detach", "config.seed=3"]) == 1
    error = capfd.readouterr().err
    assert ".spec.config.seed" in error
    assert "grpo crd | kubectl apply --server-side -f -" in error


def test_a_user_with_permissions_in_one_namespace_can_use_it(
    defined: ControlPlane, bare_api: Api, file: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bare_api.create(lease(age_s=60.0), "default")
    assert cli.main(["run", file, *place(defined, USER), "--detach"]) == 1
    assert 'User "someone" cannot get resource "grpoexperiments"' in capfd.readouterr().err
    about = {"name": USER, "namespace": "default"}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": about, "rules": [RIGHTS]}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": about,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": USER},
        "subjects": [{"kind": "User", "name": USER, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    (tmp_path / "rights.yaml").write_text(yaml.safe_dump_all([role, binding]))
    defined.kubectl("apply", "-f", str(tmp_path / "rights.yaml"))
    run = ["run", file, *place(defined, USER), "--detach"]
    eventually(lambda: cli.main(run) == 0 or None, "it may apply", 10.0)
    assert "cannot check that the operator is running" in capfd.readouterr().out
    assert cli.main(["status", *place(defined, USER)]) == 0
    output = capfd.readouterr().out
    assert "at the cluster scope; showing namespace default only" in output
    assert "exp" in output.splitlines()[-1]


def test_an_unreachable_cluster_is_reported_immediately(
    bare: ControlPlane, file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(bare.kubeconfig().read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_ports(1)[0]}"
    path = tmp_path / "away.yaml"
    path.write_text(yaml.safe_dump(config))
    began = time.monotonic()
    assert cli.main(["run", file, "--on", "kubernetes", "--kubeconfig", str(path)]) == 1
    assert time.monotonic() - began < 10.0
    error = capfd.readouterr().err
    assert error.startswith("grpo: the API server https://127.0.0.1:")
    assert "does not respond: Failed to establish a new connection: [Errno 111] Connection refused" in error


def test_rejected_credentials_are_reported(
    bare: ControlPlane, file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(bare.kubeconfig().read_text())
    config["users"][0]["user"] = {"token": "wrong"}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(config))
    assert cli.main(["run", file, "--on", "kubernetes", "--kubeconfig", str(path)]) == 1
    assert "does not accept the credentials of context c" in capfd.readouterr().err


def test_a_missing_kubeconfig_is_reported_with_the_fix(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["run", file, "--on", "kubernetes"]) == 2
    assert "there is no kubeconfig; set KUBECONFIG or --kubeconfig, or create a cluster" in capfd.readouterr().err
