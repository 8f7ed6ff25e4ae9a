"""Releases of the chart on a real API server: install, upgrade, rollback, uninstall.

There are no nodes: the operator runs locally with the account, permissions and settings of the chart.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from areal_api.experiment import KIND
from hack.cluster.control_plane import ControlPlane
from hack.testbed.control_planes import bare_plane
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import FakeKubelet, end
from hack.testbed.kube_api import Api, Object, eventually
from hack.testbed.operator_process import OperatorProcess
from support.chart import CHART, CPU, ROOT, Helm, HelmError, environment, one, operator_container

RELEASE = "areal-gsm8k"
CRD = "grpoexperiments.areal.dev"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
LISTED = (
    "deployments,replicasets,services,endpointslices,pods,poddisruptionbudgets,networkpolicies,serviceaccounts,roles,"
    "rolebindings,leases,secrets,configmaps,grpoexperiments,statefulsets,jobs"
)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane without the resource definition, which the chart installs."""
    with bare_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture
def helm(plane: ControlPlane, tmp_path: Path) -> Helm:
    return Helm(tmp_path, plane.kubeconfig())


@pytest.fixture
def api(plane: ControlPlane) -> Api:
    return Api(plane.url, plane.ca, plane.token())


@pytest.fixture
def areal(plane: ControlPlane, helm: Helm, api: Api) -> Iterator[str]:
    """A namespace that enforces Pod Security "restricted"; afterwards all releases are uninstalled."""
    make_namespace(api, "areal", RESTRICTED)
    yield "areal"
    for release in yaml.safe_load(helm.run("list", "--all-namespaces", "--output=yaml")):
        helm.uninstall(release["name"], release["namespace"])
    for kind in ("deployments", "pods", "pvc", "secrets", "leases"):
        plane.kubectl("delete", kind, "--all", "--namespace=areal", "--grace-period=0", "--force")


def make_namespace(api: Api, name: str, labels: dict[str, str]) -> None:
    if api.get("Namespace", None, name) is None:
        api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}})


def left(plane: ControlPlane, namespace: str) -> list[str]:
    """Objects in a namespace, except those that Kubernetes creates in every one."""
    found = plane.kubectl("get", LISTED, f"--namespace={namespace}", "--output=name", "--ignore-not-found").split()
    return sorted(name for name in found if name not in ("serviceaccount/default", "configmap/kube-root-ca.crt"))


def operator_of(
    plane: ControlPlane, helm: Helm, folder: Path, *settings: str, namespace: str = "areal"
) -> OperatorProcess:
    """The operator with the chart's settings, running locally."""
    container = operator_container(helm.template(*settings))
    operator = OperatorProcess(plane, folder)
    login = yaml.safe_load(plane.kubeconfig().read_text())
    token = plane.kubectl("create", "token", f"{RELEASE}-operator", f"--namespace={namespace}").strip()
    login["users"][0]["user"] = {"token": token}
    (folder / "operator.kubeconfig").write_text(yaml.safe_dump(login))
    here = {"AREAL_OPERATOR_NAMESPACE": namespace, "AREAL_OPERATOR_URL": operator.url}
    operator.start(**{**environment(container), **here, "KUBECONFIG": str(folder / "operator.kubeconfig")})
    return operator


def test_one_install_creates_definition_operator_and_experiment(
    areal: str, plane: ControlPlane, helm: Helm, api: Api
) -> None:
    assert plane.kubectl("get", "crd", "--output=name") == ""
    helm.install(RELEASE, areal, "operator.replicas=2", "networkPolicy.enabled=true", more=[f"--values={CPU}"])
    assert api.get(KIND, areal, "tiny") is not None
    pods = eventually(
        lambda: [pod for pod in left(plane, areal) if pod.startswith("pod/")][1:], "two pods that Pod Security lets in"
    )
    assert len(pods) == 1


@pytest.mark.parametrize(
    "more", [(), ("image.pullSecrets[0].name=registry", "experiment.enabled=true", "ui.enabled=true")]
)
def test_the_api_server_accepts_every_object_of_the_chart(
    areal: str, plane: ControlPlane, helm: Helm, tmp_path: Path, more: tuple[str, ...]
) -> None:
    helm.install(RELEASE, areal)
    options = ("operator.replicas=3", "networkPolicy.enabled=true", "operator.tolerations[0].operator=Exists")
    objects = helm.template(*options, "experiment.name=other", *more)
    one(objects, "Pod")["spec"]["serviceAccountName"] = "default"  # its own is not there yet
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    said = plane.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", f"--filename={file}")
    assert said.count("serverside-applied") == len(objects)
    assert f"pod/{RELEASE}-test serverside-applied" in said  # Pod Security looks at dry runs too


@pytest.mark.parametrize("file", ["tiny/experiment.yaml", "gsm8k/experiment.yaml", "gsm8k/cpu.yaml"])
def test_the_api_server_accepts_the_examples(areal: str, plane: ControlPlane, helm: Helm, file: str) -> None:
    helm.install(RELEASE, areal)
    said = plane.kubectl("apply", "--dry-run=server", f"--filename={ROOT / 'examples' / file}")
    assert "created (server dry run)" in said


def test_the_operator_works_with_the_charts_permissions_and_leaves_nothing_behind(
    areal: str, plane: ControlPlane, helm: Helm, api: Api, tmp_path: Path
) -> None:
    helm.install(RELEASE, areal, more=[f"--values={CPU}"])
    operator = operator_of(plane, helm, tmp_path)
    try:
        eventually(lambda: "job.batch/tiny-trainer-1" in left(plane, areal), "the trainer's Job")
        assert {"lease.coordination.k8s.io/areal-operator", "secret/areal-operator-key"} <= set(left(plane, areal))
        helm.uninstall(RELEASE, areal)  # the operator lives on for a while, as a pod that ends does
        time.sleep(6.0)
        eventually(lambda: left(plane, areal) == [], f"nothing but the volume; there is {left(plane, areal)}")
    finally:
        operator.stop()
    assert "forbidden" in operator.log.read_text()  # it tried to recreate its Lease
    assert plane.kubectl("get", "pvc", "--namespace=areal", "--output=name").split() == [
        "persistentvolumeclaim/tiny-run"
    ]
    assert plane.kubectl("get", "crd", CRD, "--output=name").strip().endswith(CRD)
    roles = plane.kubectl("get", "clusterroles,clusterrolebindings", "--output=name")
    assert RELEASE not in roles


def test_helm_test_passes_or_names_what_is_missing(areal: str, plane: ControlPlane, helm: Helm, tmp_path: Path) -> None:
    helm.install(RELEASE, areal, more=[f"--values={CPU}"])
    objects = helm.template(more=[f"--values={CPU}"])
    hooks = [obj for obj in objects if obj["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"]
    rights = tmp_path / "rights.yaml"
    rights.write_text(yaml.safe_dump_all([obj for obj in hooks if obj["kind"] != "Pod"]))
    plane.kubectl("apply", f"--filename={rights}")
    (tmp_path / "token").write_text(plane.kubectl("create", "token", f"{RELEASE}-test", "--namespace=areal"))
    shutil.copy(plane.ca, tmp_path / "ca.crt")
    container = one(hooks, "Pod")["spec"]["containers"][0]

    def check(**env: str) -> tuple[int, str]:
        own = {"ACCOUNT_DIR": str(tmp_path), "API_URL": plane.url, **env}
        command = [sys.executable, *container["command"][1:]]
        done = subprocess.run(
            command, env={**os.environ, **environment(container), **own}, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    status, said = check(OPERATOR_URL="http://127.0.0.1:1", DEADLINE_SECONDS="1")
    assert (status, "failed: the operator does not answer at http://127.0.0.1:1/readyz" in said) == (1, True), said
    operator = operator_of(plane, helm, tmp_path)
    try:
        status, said = check(OPERATOR_URL=operator.url)
        assert (status, said.count("ok: ")) == (0, 3), said
        status, said = check(OPERATOR_URL=operator.url, EXPERIMENT="another", DEADLINE_SECONDS="1")
        assert (status, "403" in said) == (1, True), said  # its account may look at the release's experiment alone
    finally:
        operator.stop()


def test_an_upgrade_installs_a_new_definition_and_a_rollback_the_old_one(
    areal: str, plane: ControlPlane, helm: Helm, api: Api, tmp_path: Path
) -> None:
    newer = chart_with_a_field(tmp_path, "tpuTopology")
    helm.install(RELEASE, areal, more=[f"--values={CPU}"])
    before = api_schema(plane)
    for round_ in range(3):  # the new field and its first use come in one upgrade
        helm.upgrade(RELEASE, areal, "experiment.spec.servers.tpuTopology=2x2", chart=newer, more=[f"--values={CPU}"])
        assert servers(api, areal)["tpuTopology"] == "2x2", round_
        uid = uid_of(api, areal)
        helm.run("rollback", RELEASE, "1", f"--namespace={areal}")
        assert "tpuTopology" not in servers(api, areal)
        assert api_schema(plane) == before
        assert uid_of(api, areal) == uid  # an upgrade deletes no experiment


def test_an_upgrade_and_a_rollback_leave_a_run_in_progress_alone(
    areal: str, plane: ControlPlane, helm: Helm, api: Api, tmp_path: Path
) -> None:
    """The definition and the operator change twice; the run keeps its pods, its attempt and its objects' specs."""
    kubelet = FakeKubelet(api)
    kubelet.start()
    operator: OperatorProcess | None = None
    try:
        helm.install(RELEASE, areal, more=[f"--values={CPU}"])
        operator = operator_of(plane, helm, tmp_path)
        run = Experiment(Namespace(api, kubelet, areal), "tiny")
        run.until_phase("Running", 60.0)
        before = {kind: generations(api, areal, kind) for kind in ("Pod", "StatefulSet", "Job")}
        newer = chart_with_a_field(tmp_path, "tpuTopology")
        for step in ("upgrade", "rollback"):
            operator.stop()
            if step == "upgrade":
                helm.upgrade(RELEASE, areal, "operator.workers=2", chart=newer, more=[f"--values={CPU}"])
            else:
                helm.run("rollback", RELEASE, "1", f"--namespace={areal}")
            operator = operator_of(plane, helm, tmp_path)
            time.sleep(3.0)
            status = run.status
            assert (status["phase"], status["attempt"]) == ("Running", 1), step
            assert (status["restarts"], status["disruptions"]) == (0, 0), step
            assert {kind: generations(api, areal, kind) for kind in before} == before, step
        run.namespace.behave("trainer", end(0))
        run.until_phase("Succeeded")
    finally:
        if operator is not None:
            operator.stop()
        kubelet.stop()
        plane.kubectl("delete", "nodes,storageclasses", "--all")  # the other tests have none


def generations(api: Api, namespace: str, kind: str) -> dict[str, tuple[str, int | None]]:
    """UIDs and generations of the experiment's objects of a kind."""
    found = {one["metadata"]["name"]: one["metadata"] for one in api.list(kind, namespace, "areal.dev/experiment=tiny")}
    return {name: (metadata["uid"], metadata.get("generation")) for name, metadata in found.items()}


def named(objects: list[Object]) -> list[tuple[str, str]]:
    """Kinds and names."""
    return sorted((one["kind"], one["metadata"]["name"]) for one in objects if one["kind"] != "Lease")


def spec_of(plane: ControlPlane, kind: str, name: str) -> Object:
    """An object without its status, its version and the record of who wrote it."""
    found = json.loads(plane.kubectl("get", kind, name, "--namespace=areal", "--output=json"))
    kept = {key: value for key, value in found["metadata"].items() if key not in ("resourceVersion", "managedFields")}
    return {key: value for key, value in {**found, "metadata": kept}.items() if key != "status"}


def test_a_reinstall_adopts_and_upgrades_the_definition_that_was_kept(
    areal: str, plane: ControlPlane, helm: Helm, tmp_path: Path
) -> None:
    helm.install("first", areal)
    old = api_schema(plane)
    helm.uninstall("first", areal)
    newer = chart_with_a_field(tmp_path, "tpuTopology")
    helm.run("install", "second", str(newer), f"--namespace={areal}")
    assert "tpuTopology" not in str(old)
    assert "tpuTopology" in str(api_schema(plane))


def test_changing_the_configuration_of_a_started_run_stops_the_upgrade(
    areal: str, plane: ControlPlane, helm: Helm, tmp_path: Path
) -> None:
    helm.install(RELEASE, areal, more=[f"--values={CPU}"])
    status = '{"status": {"startTime": "2026-01-01T00:00:00Z"}}'
    plane.kubectl("patch", "grpo", "tiny", "--namespace=areal", "--subresource=status", "--type=merge", "-p", status)
    with pytest.raises(HelmError, match=r"spec\.config of a run that has started does not change"):
        helm.upgrade(RELEASE, areal, "experiment.spec.config.seed=7", chart=CHART, more=[f"--values={CPU}"])
    helm.upgrade(RELEASE, areal, "experiment.spec.runPolicy.suspend=true", chart=CHART, more=[f"--values={CPU}"])


def test_changes_by_others_are_not_overwritten_unless_forced(
    areal: str, plane: ControlPlane, helm: Helm, api: Api
) -> None:
    helm.install(RELEASE, areal, "experiment.spec.servers.maxReplicas=3", more=[f"--values={CPU}"])
    plane.kubectl("scale", "grpo/tiny", "--replicas=3", "--namespace=areal")
    with pytest.raises(HelmError, match=r"conflict.*\.spec\.servers\.replicas"):
        helm.upgrade(RELEASE, areal, "experiment.spec.servers.replicas=2", chart=CHART, more=[f"--values={CPU}"])
    assert servers(api, areal)["replicas"] == 3
    wanted = ("experiment.spec.servers.replicas=2", "experiment.spec.servers.maxReplicas=3")
    helm.upgrade(RELEASE, areal, *wanted, chart=CHART, more=[f"--values={CPU}", "--force-conflicts"])
    assert servers(api, areal)["replicas"] == 2
    api.delete(KIND, areal, "tiny")
    helm.upgrade(RELEASE, areal, chart=CHART, more=[f"--values={CPU}"])
    assert servers(api, areal)["replicas"] == 1  # created again


def test_conflicting_operators_are_refused(areal: str, helm: Helm, api: Api) -> None:
    for name in ("one", "two"):
        make_namespace(api, name, {})
    helm.install("first", areal, "operator.watchNamespaces={one}")
    with pytest.raises(HelmError, match="release first already has an operator in namespace areal"):
        helm.install("second", areal, "operator.watchNamespaces={two}")
    with pytest.raises(HelmError, match="release first in namespace areal manages one; remove it"):
        helm.install("second", "two", "operator.watchNamespaces={one,two}")
    with pytest.raises(HelmError, match="release first in namespace areal manages one; set operator"):
        helm.install("second", "two")
    helm.install("second", "two", "operator.watchNamespaces={two}", "crds.enabled=false")
    with pytest.raises(HelmError, match="manages two; remove it"):
        helm.upgrade("first", areal, "operator.watchNamespaces={one,two}", chart=CHART)
    helm.uninstall("second", "two")
    helm.upgrade("first", areal, "operator.watchNamespaces=null", chart=CHART)
    with pytest.raises(HelmError, match="release first in namespace areal manages all namespaces, as this one"):
        helm.install("second", "two")
    with pytest.raises(HelmError, match="release first in namespace areal manages all namespaces; set"):
        helm.install("second", "two", "operator.watchNamespaces={two}")


def test_an_operator_of_some_namespaces_works_only_there(
    areal: str, plane: ControlPlane, helm: Helm, api: Api, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        make_namespace(api, name, {})
    setting = "operator.watchNamespaces={one}"
    helm.install(RELEASE, areal, setting)
    for name in ("one", "two"):
        plane.kubectl("apply", f"--namespace={name}", f"--filename={ROOT / 'examples/tiny/experiment.yaml'}")
    operator = operator_of(plane, helm, tmp_path, setting)
    try:
        eventually(lambda: "job.batch/tiny-trainer-1" in left(plane, "one"), "the trainer's Job")
        time.sleep(2.0)
        assert left(plane, "two") == ["grpoexperiment.areal.dev/tiny"]
        assert operator.runs
        assert "forbidden" not in operator.log.read_text()
    finally:
        operator.stop()
        for name in ("one", "two"):
            plane.kubectl("delete", f"--namespace={name}", "grpo,pvc", "--all")


FORBIDDEN = [
    ("get", "secrets"),
    ("list", "secrets"),
    ("patch", "secrets"),
    ("delete", "persistentvolumeclaims"),
    ("create", "pods"),
    ("create", "pods", "--subresource=exec"),
    ("list", "configmaps"),
    ("create", "serviceaccounts", "--subresource=token"),
    ("create", "roles.rbac.authorization.k8s.io"),
    ("update", "grpoexperiments"),
    ("impersonate", "serviceaccounts"),
]


def test_the_operator_may_read_no_secrets_and_delete_no_data(areal: str, plane: ControlPlane, helm: Helm) -> None:
    helm.install(RELEASE, areal)
    account = f"system:serviceaccount:areal:{RELEASE}-operator"

    def may(*action: str) -> bool:
        command = ("auth", "can-i", *action, "--namespace=default", f"--as={account}")
        try:
            return plane.kubectl(*command).strip() == "yes"
        except subprocess.CalledProcessError:  # exit status 1
            return False

    assert [action for action in FORBIDDEN if may(*action)] == []
    assert may("create", "secrets")
    assert may("patch", "statefulsets.apps")


LABELS = {"app.kubernetes.io/managed-by": "areal-operator", "areal.dev/experiment": "x"}
OWNER = {"apiVersion": "areal.dev/v1alpha1", "kind": "GRPOExperiment", "name": "x", "uid": "u", "controller": True}
OURS = {"labels": LABELS, "ownerReferences": [OWNER]}


def trainer_job_with(pod: Object, container: Object) -> Object:
    """The spec of a Job, with changes of its pod and of its container."""
    container = {"name": "c", "image": "i", **container}
    pod = {"restartPolicy": "Never", "serviceAccountName": "x-run", "containers": [container], **pod}
    return {"template": {"spec": pod}}


def service_with(**changes: Any) -> Object:
    """The spec of a headless Service, with changes."""
    return {"clusterIP": "None", "ports": [{"port": 1}], **changes}


TOKEN, FOR_DEFAULT = "kubernetes.io/service-account-token", {"kubernetes.io/service-account.name": "default"}
HOST_PATH = {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}
PRIVILEGED = {"securityContext": {"privileged": True}}
ATTACKS: list[tuple[Object, str]] = [
    ({"kind": "ServiceAccount", "metadata": {"labels": {}}}, "must have the labels"),
    ({"kind": "ServiceAccount", "metadata": {"labels": LABELS}}, "must be owned by an experiment"),
    ({"kind": "Secret", "type": TOKEN, "metadata": {**OURS, "annotations": FOR_DEFAULT}}, "Secrets of type Opaque"),
    ({"kind": "Secret", "type": "Opaque"}, "Secrets of type Opaque"),
    ({"kind": "ServiceAccount"}, "service accounts of experiments"),
    ({"kind": "Job", "spec": trainer_job_with({"serviceAccountName": "default"}, {})}, "account of their experiment"),
    ({"kind": "Job", "spec": trainer_job_with({"serviceAccountName": "y-run"}, {})}, "account of their experiment"),
    ({"kind": "Job", "spec": trainer_job_with({"hostIPC": True}, {})}, "no host namespaces"),
    ({"kind": "Job", "spec": trainer_job_with({}, PRIVILEGED)}, "must not be privileged"),
    ({"kind": "Job", "spec": trainer_job_with(HOST_PATH, {})}, "must not mount paths of the node"),
    ({"kind": "Service", "spec": service_with(clusterIP="")}, "must be headless"),
    ({"kind": "Service", "spec": service_with(externalIPs=["192.0.2.1"])}, "must be headless"),
]


def test_a_hijacked_operator_can_only_write_objects_of_experiments(
    areal: str, plane: ControlPlane, helm: Helm, tmp_path: Path
) -> None:
    helm.install(RELEASE, areal)
    account = f"system:serviceaccount:areal:{RELEASE}-operator"
    file = tmp_path / "attack.json"

    def answer(name: str, given: Object) -> str:
        version = "batch/v1" if given["kind"] == "Job" else "v1"
        metadata = {"name": name, **given.get("metadata", OURS)}
        file.write_text(json.dumps({"apiVersion": version, **given, "metadata": metadata}))
        try:
            return plane.kubectl("create", f"--as={account}", "--namespace=default", f"--filename={file}")
        except subprocess.CalledProcessError as error:
            return str(error.stderr)

    for number, (given, expected) in enumerate(ATTACKS):  # a new policy takes effect within seconds
        name = f"attack-{number}"
        eventually(lambda n=name, g=given, e=expected: e in answer(n, g), f"{given} is refused: {expected}", 30.0)
    assert "created" in answer("good", {"kind": "Job", "spec": trainer_job_with({}, {})})
    assert "created" in answer("x-1-api-key", {"kind": "Secret", "type": "Opaque"})
    plane.kubectl("create", "serviceaccount", "mine", "--namespace=default")
    change = json.dumps({"metadata": OURS})
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        plane.kubectl("patch", "serviceaccount/mine", f"--as={account}", "--namespace=default", "-p", change)
    assert "may only change and delete objects that it manages" in refusal.value.stderr
    plane.kubectl("delete", "jobs,secrets", "--all", "--namespace=default")
    plane.kubectl("delete", "serviceaccount/mine", "--namespace=default")


def test_what_helm_template_prints_is_applied_twice_without_a_difference(
    areal: str, plane: ControlPlane, helm: Helm, api: Api, tmp_path: Path
) -> None:
    """As Argo CD and Flux do, every few minutes, while the operator works. It alone changes its Lease.

    The last test on this control plane: afterwards Argo CD owns the definition.
    """
    options = ("operator.replicas=2", "kueue.enabled=true", "gang.schedulers.volcano=volcano")
    on = ("experiment.enabled=true", "experiment.example=tiny", "experiment.name=tiny")
    helm.install(RELEASE, areal, *options)  # for the definitions of hooks and of what they wait for
    rendered = helm.template(*options, *on)
    tests = [one["metadata"].get("annotations", {}).get("helm.sh/hook") == "test" for one in rendered]
    objects = [one for one, is_test in zip(rendered, tests, strict=True) if not is_test]
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    command = ("apply", "--server-side", "--field-manager=argocd", "--force-conflicts", f"--filename={file}")
    plane.kubectl(*command, "--namespace=areal")
    operator = operator_of(plane, helm, tmp_path, *options)
    try:
        eventually(lambda: "job.batch/tiny-trainer-1" in left(plane, areal), "the trainer's Job")
        versions = {key: spec_of(plane, *key) for key in named(objects)}
        for _ in range(2):
            plane.kubectl(*command, "--namespace=areal")
            time.sleep(1.0)
            assert {key: spec_of(plane, *key) for key in named(objects)} == versions
    finally:
        operator.stop()


def chart_with_a_field(folder: Path, name: str) -> Path:
    """The chart, with a definition that has one more field of the servers."""
    chart = Path(shutil.copytree(CHART, folder / "newer"))
    file = chart / "charts" / "crds" / "crds" / f"{CRD.partition('.')[0]}.yaml"
    definition: dict[str, Any] = yaml.safe_load(file.read_text())
    root = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    root["properties"]["spec"]["properties"]["servers"]["properties"][name] = {"type": "string"}
    file.write_text(yaml.safe_dump(definition))
    return chart


def api_schema(plane: ControlPlane) -> Object:
    """The schema on the API server."""
    return dict(yaml.safe_load(plane.kubectl("get", "crd", CRD, "--output=yaml"))["spec"])


def servers(api: Api, namespace: str) -> Object:
    """``spec.servers`` of the chart's experiment."""
    body = api.get(KIND, namespace, "tiny")
    assert body is not None
    return dict(body["spec"]["servers"])


def uid_of(api: Api, namespace: str) -> str:
    """UID of the chart's experiment."""
    body = api.get(KIND, namespace, "tiny")
    assert body is not None
    return str(body["metadata"]["uid"])
