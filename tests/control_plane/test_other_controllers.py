"""Faults that other controllers, policies, versions and people cause, on a real API server."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from areal_api.experiment import KIND
from areal_api.generate.crd import FILE
from hack.cluster.control_plane import ControlPlane
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import end, end_beside_sidecar, run_unready
from hack.testbed.kube_api import Api, Object, Refused, eventually
from hack.testbed.operator_process import USER, OperatorProcess, grant
from support.progress import post, token_of, url_of

TOLERATION = {"key": "team", "operator": "Exists"}


@contextmanager
def mutation(namespace: Namespace, resource: str, version: str, expression: str, probe: Object) -> Iterator[None]:
    """A policy that changes every created object of a kind, by a CEL expression of type list of JSONPatch."""
    api, name = namespace.api, namespace.name
    group, _, of_version = version.rpartition("/")
    rule = {
        "apiGroups": [group],
        "apiVersions": [of_version],
        "operations": ["CREATE"],
        "resources": [resource],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": name}}
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    }
    api.create(policy)
    api.create(binding)
    try:
        eventually(lambda: _differs(api, name, probe), "the policy is in force", 30.0)
        yield
    finally:
        api.delete("MutatingAdmissionPolicyBinding", None, name)
        api.delete("MutatingAdmissionPolicy", None, name)


def _differs(api: Api, namespace: str, probe: Object) -> bool:
    """Whether a dry run of creating ``probe`` returns another spec than without the policy."""
    group = "batch/v1" if probe["kind"] == "Job" else "v1"
    plural = {"Job": "jobs", "Pod": "pods"}[probe["kind"]]
    prefix = "/api/v1" if group == "v1" else f"/apis/{group}"
    created = api.post(f"{prefix}/namespaces/{namespace}/{plural}?dryRun=All", {**probe, "apiVersion": group})
    template = created["spec"]["template"]["spec"] if probe["kind"] == "Job" else created["spec"]
    return (
        created["spec"].get("ttlSecondsAfterFinished") is not None
        or len(template["containers"]) > 1
        or any(toleration.get("key") == "team" for toleration in template.get("tolerations", []))
    )


SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
POD_SPEC = {
    "containers": [{"name": "trainer", "image": "x", "securityContext": SECURITY}],
    "restartPolicy": "Never",
    "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
}
JOB = {"kind": "Job", "metadata": {"name": "probe"}, "spec": {"template": {"spec": POD_SPEC}}}
POD = {"kind": "Pod", "metadata": {"name": "probe"}, "spec": POD_SPEC}


# The outcome of an attempt is in the status.


@pytest.mark.parametrize(("exit_code", "phase"), [(0, "Succeeded"), (1, "Failed")])
def test_jobs_that_a_policy_collects_at_once_end_the_run(experiment: Experiment, exit_code: int, phase: str) -> None:
    expression = '[JSONPatch{op: "add", path: "/spec/ttlSecondsAfterFinished", value: 0}]'
    with mutation(experiment.namespace, "jobs", "batch/v1", expression, JOB):
        experiment.namespace.behave("trainer", end(exit_code, "RuntimeError: boom\n"))
        experiment.apply(runPolicy__backoffLimit=1)
        status = experiment.until_phase(phase, 60.0)
    assert (status["attempt"], status["restarts"]) == ((1, 0) if exit_code == 0 else (2, 1))
    assert status["outcome"]["result"] == phase
    if exit_code:
        assert "RuntimeError: boom" in status["message"]


@pytest.mark.parametrize("limit", [0, 1])
def test_a_job_that_is_collected_while_no_operator_runs_leads_to_a_result(
    experiment: Experiment, operator: OperatorProcess, limit: int
) -> None:
    namespace = experiment.namespace
    experiment.apply(runPolicy__backoffLimit=limit)
    status = experiment.until_phase("Running")
    assert status["jobUid"]
    operator.kill()
    try:
        namespace.behave("trainer", end(0))
        eventually(lambda: _job_is(namespace, "Complete"), "the trainer ends")
        namespace.api.delete("Job", namespace.name, "exp-trainer-1")
        eventually(lambda: not [name for name in namespace.names("Pod") if "trainer" in name], "its pods are collected")
    finally:
        operator.start()
    status = experiment.until_phase("Succeeded" if limit else "Failed", 60.0)
    if limit:
        assert (status["attempt"], status["restarts"]) == (2, 1)
    else:
        assert experiment.condition("Succeeded")["reason"] == "OutcomeUnknown"


def _job_is(namespace: Namespace, condition: str) -> bool:
    job = namespace.api.get("Job", namespace.name, "exp-trainer-1") or {}
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(one["type"] == condition and one["status"] == "True" for one in conditions)


# Versions of definition and operator differ.


@contextmanager
def definition(plane: ControlPlane, folder: Path, change: Any) -> Iterator[None]:
    """The resource definition with a change of its schema, and afterwards the original."""
    data = yaml.safe_load(FILE.read_text())
    changed = copy.deepcopy(data)
    change(changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"])
    for name, content in (("changed", changed), ("original", data)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    plane.kubectl("replace", "-f", str(folder / "changed.yaml"))
    try:
        time.sleep(2.0)  # until the API server serves the new schema
        yield
    finally:
        plane.kubectl("replace", "-f", str(folder / "original.yaml"))
        time.sleep(2.0)


def test_fields_of_a_newer_definition_have_no_effect_and_are_named(
    experiment: Experiment, plane: ControlPlane, tmp_path: Path
) -> None:
    def newer(schema: Object) -> None:
        new = {"type": "boolean", "default": True}
        schema["spec"]["properties"]["servers"]["properties"]["newKey"] = new
        schema["spec"]["properties"]["config"]["properties"]["new_key"] = new

    with definition(plane, tmp_path, newer):
        experiment.apply()
        experiment.until_phase("Running", 60.0)
        accepted = experiment.condition("Accepted")
        assert (accepted["status"], accepted["reason"]) == ("True", "UnknownFields")
        assert "spec.servers.newKey" in accepted["message"]
        assert "spec.config.new_key" in accepted["message"]


def test_an_older_definition_loses_only_the_fields_that_it_lacks(
    experiment: Experiment, plane: ControlPlane, operator: OperatorProcess, tmp_path: Path
) -> None:
    def older(schema: Object) -> None:
        for field in ("outcome", "jobUid", "serversBehind", "staleness"):
            del schema["status"]["properties"][field]

    with definition(plane, tmp_path, older):
        experiment.apply()
        experiment.until_phase("Running", 60.0)
        report = {"step": 3, "totalSteps": 10, "reward": 0.5, "staleness": 1.0, "serversBehind": 1, "serversCurrent": 2}
        assert post(url_of(experiment, operator), token_of(experiment), report).status_code == 202
        status = experiment.until(lambda now: now.get("step") == 3, "the report", 10.0)
        assert (status["reward"], status["serversCurrent"]) == (0.5, 2)
        assert "staleness" not in status
        experiment.namespace.behave("trainer", end(0))
        experiment.until_phase("Succeeded")
    operator.kill()  # it remembers what the definition lacks until its next start
    operator.start()


# One object or namespace does not stop the others.


def test_a_deeply_nested_experiment_stops_nothing(experiment: Experiment, operator: OperatorProcess) -> None:
    namespace = experiment.namespace
    nested = '{"a":' * 3000 + "1" + "}" * 3000
    with deep_json():
        try:
            namespace.api.create_text(_json_with(Experiment(namespace, "bad").body(), nested), KIND, namespace.name)
        except Refused as refused:  # a definition with bounds refuses it: nothing to survive
            if refused.status != 422:
                raise
            return
        try:
            condition = Experiment(namespace, "bad").until_reason("Accepted", "Invalid")
            assert "nested more than" in condition["message"]
            experiment.apply()
            experiment.until_phase("Running")
            operator.kill()
            operator.start()
            Experiment(namespace, "other").apply().until_phase("Running")
            assert operator.answers("/healthz")
        finally:
            namespace.api.delete(KIND, namespace.name, "bad")
            eventually(lambda: namespace.api.get(KIND, namespace.name, "bad") is None, "it is deleted")


@contextmanager
def deep_json() -> Iterator[None]:
    """Let this process parse deeply nested JSON."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _json_with(body: Object, nested: str) -> str:
    """The JSON of an experiment whose ``servers.args`` is ``nested``."""
    body = copy.deepcopy(body)
    body["spec"]["servers"]["args"] = {"deep": "PLACEHOLDER"}
    return json.dumps(body).replace('"PLACEHOLDER"', nested)


def test_a_claim_that_may_not_grow_does_not_hold_up_the_next_attempt(experiment: Experiment) -> None:
    namespace = experiment.namespace
    name = f"fixed-{namespace.name}"[:60]
    namespace.api.create(
        {
            "kind": "StorageClass",
            "apiVersion": "storage.k8s.io/v1",
            "metadata": {"name": name},
            "provisioner": "test.areal.dev/none",
            "allowVolumeExpansion": False,
        }
    )
    namespace.kubelet.classes.add(name)
    experiment.apply(storage__storageClassName=name, storage__size="10Gi")
    experiment.until_phase("Running")
    experiment.edit(storage__size="20Gi")
    accepted = experiment.until_reason("Accepted", "Refused")
    assert "PersistentVolumeClaim exp-run" in accepted["message"]
    (pod,) = [pod for pod in namespace.names("Pod") if "trainer" in pod]
    namespace.api.delete("Pod", namespace.name, pod)
    experiment.until(lambda now: now["attempt"] == 2 and now["phase"] == "Running", "the second attempt")


def test_a_deleted_namespace_does_not_stop_the_others(
    namespace: Namespace, plane: ControlPlane, operator: OperatorProcess, logs: Path
) -> None:
    """An operator of two namespaces, of which one was deleted with its RoleBinding before the operator started."""
    api = namespace.api
    operator.stop()
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    role = {"kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "all"}, "rules": rules}
    api.create(role, namespace.name)
    api.create(
        {
            "kind": "RoleBinding",
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "metadata": {"name": "all"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "all"},
            "subjects": [{"kind": "User", "name": USER}],
        },
        namespace.name,
    )
    plane.kubectl("delete", "clusterrolebinding", USER)
    second = OperatorProcess(plane, logs, identity="operator-of-two")
    try:
        second.start(AREAL_WATCH_NAMESPACES=f"{namespace.name},deleted-namespace", AREAL_OPERATOR_RESYNC_SECONDS="2")
        Experiment(namespace).apply().until_phase("Running")
        time.sleep(5.0)
        assert second.runs
        log = second.log.read_text()
        assert log.count("namespace deleted-namespace cannot be read") == 1
    finally:
        second.stop()
        (logs / "grant.yaml").write_text(yaml.safe_dump_all(grant()))
        plane.kubectl("apply", "-f", str(logs / "grant.yaml"))
        operator.start()


# Drains, quantities, edits, sidecars, immutable fields.


def test_servers_that_load_their_model_can_be_evicted(experiment: Experiment) -> None:
    namespace = experiment.namespace
    namespace.behave("server", run_unready)
    experiment.apply(servers__replicas=2)
    pods = eventually(lambda: _running_servers(namespace), "two servers load")
    for pod in pods:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace.name}}
        path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
        eventually(lambda path=path, body=body: _is_evicted(namespace.api, path, body), f"{pod} is evicted", 10.0)


def _running_servers(namespace: Namespace) -> list[str] | None:
    pods = [pod for pod in namespace.list("Pod") if "server" in pod["metadata"]["name"]]
    running = [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") == "Running"]
    return running if len(running) == 2 else None


def _is_evicted(api: Api, path: str, body: Object) -> bool:
    try:
        api.post(path, body)
    except Refused as refused:
        if refused.status != 429:
            raise
        return False
    return True


@pytest.mark.parametrize("size", ["1.3Gi", "1e10", "1500000001m", "2.5Ti"])
def test_a_size_that_is_stored_in_another_form_stays_valid(experiment: Experiment, size: str) -> None:
    experiment.apply(storage__size=size)
    experiment.until_phase("Running")
    experiment.edit(servers__replicas=2)
    experiment.until(lambda now: now["servers"]["summary"] == "2/2", "two servers")
    assert experiment.condition("Accepted")["status"] == "True"


def test_an_edit_of_the_nodes_leaves_a_running_trainer_alone(experiment: Experiment) -> None:
    experiment.apply(trainer__nodes=2, runPolicy__preRunningDeadlineSeconds=5)
    experiment.until_phase("Running")
    experiment.edit(trainer__nodes=1)
    experiment.until(lambda now: now["observedGeneration"] == 2, "the edit is seen")
    time.sleep(6.0)
    assert experiment.status["phase"] == "Running"
    assert experiment.condition("TrainerRunning")["status"] == "True"


def test_an_injected_sidecar_does_not_keep_a_finished_run_running(experiment: Experiment) -> None:
    security = "Object.spec.containers.securityContext{allowPrivilegeEscalation: false, runAsNonRoot: true, "
    security += 'capabilities: Object.spec.containers.securityContext.capabilities{drop: ["ALL"]}, '
    security += 'seccompProfile: Object.spec.containers.securityContext.seccompProfile{type: "RuntimeDefault"}}'
    container = f'Object.spec.containers{{name: "proxy", image: "s", securityContext: {security}}}'
    expression = f'[JSONPatch{{op: "add", path: "/spec/containers/-", value: {container}}}]'
    with mutation(experiment.namespace, "pods", "/v1", expression, POD):
        experiment.apply()
        experiment.until_phase("Running")
        experiment.namespace.behave("trainer", end_beside_sidecar(0, "proxy"))
        status = experiment.until_phase("Succeeded")
    assert "container proxy had not ended with it" in status["message"]


def test_an_annotation_does_not_make_the_operator_apply_immutable_fields_again(experiment: Experiment) -> None:
    namespace = experiment.namespace
    toleration = 'Object.spec.template.spec.tolerations{key: "team", operator: "Exists"}'
    expression = f'[JSONPatch{{op: "add", path: "/spec/template/spec/tolerations/-", value: {toleration}}}]'
    with mutation(namespace, "jobs", "batch/v1", expression, JOB):
        experiment.apply()
        experiment.until_phase("Running")
        job = namespace.api.get("Job", namespace.name, "exp-trainer-1")
        assert job is not None
        assert TOLERATION in job["spec"]["template"]["spec"]["tolerations"]
        changes = {"metadata": {"annotations": {"team": "x"}, "labels": {"areal.dev/experiment": "exp", "a": "b"}}}
        namespace.api.patch("Job", namespace.name, "exp-trainer-1", changes)
        namespace.api.patch("Job", namespace.name, "exp-trainer-1", {"spec": {"suspend": True}})
        eventually(lambda: _suspend_of(namespace) is False, "the Job is resumed")
        time.sleep(2.0)
    assert experiment.condition("Accepted")["status"] == "True"
    job = namespace.api.get("Job", namespace.name, "exp-trainer-1") or {}
    assert job["metadata"]["annotations"]["team"] == "x"
    assert TOLERATION in job["spec"]["template"]["spec"]["tolerations"]


def _suspend_of(namespace: Namespace) -> Any:
    return (namespace.api.get("Job", namespace.name, "exp-trainer-1") or {}).get("spec", {}).get("suspend")


def test_all_containers_satisfy_a_limit_range_that_the_trainer_satisfies(experiment: Experiment) -> None:
    namespace = experiment.namespace
    limits = [{"type": "Container", "min": {"cpu": "100m", "memory": "64Mi"}, "max": {"cpu": "8", "memory": "64Gi"}}]
    body = {"kind": "LimitRange", "apiVersion": "v1", "metadata": {"name": "minimum"}, "spec": {"limits": limits}}
    namespace.api.create(body, namespace.name)
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    experiment.apply(servers__resources=resources, trainer__resources=resources)
    experiment.until_phase("Running")


def test_the_status_no_longer_names_a_quota_that_was_lifted(experiment: Experiment) -> None:
    namespace = experiment.namespace
    namespace.refuse_pods()
    namespace.behave("server", run_unready)
    experiment.apply()
    experiment.until_reason("ServersReady", "QuotaExceeded")
    namespace.api.delete("ResourceQuota", namespace.name, "none")
    eventually(lambda: [name for name in namespace.names("Pod") if "server" in name], "the pods are created", 60.0)
    experiment.until_reason("ServersReady", "Starting")


def test_a_controller_that_keeps_suspending_the_job_is_named(experiment: Experiment) -> None:
    namespace = experiment.namespace
    experiment.apply()
    experiment.until_phase("Running")
    for _ in range(6):
        namespace.api.patch("Job", namespace.name, "exp-trainer-1", {"spec": {"suspend": True}})
        with suppress(AssertionError):
            eventually(lambda: _suspend_of(namespace) is False, "the Job is resumed", 5.0)
    contested = experiment.until_reason("Contested", "ChangedByOthers")
    assert "keeps changing Job exp-trainer-1" in contested["message"]
    assert namespace.events("ChangedByOthers")


def test_a_claim_that_somebody_else_created_survives_the_experiment(experiment: Experiment) -> None:
    namespace = experiment.namespace
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "test"}
    claim = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {"name": "exp-run"}, "spec": spec}
    namespace.api.create(claim, namespace.name)
    namespace.kubelet.provision(namespace.api.get("PersistentVolumeClaim", namespace.name, "exp-run") or {})
    experiment.apply(storage__whenDeleted="Delete", storage__size="50Gi")
    experiment.until_phase("Running")
    assert experiment.condition("StorageReady")["reason"] == "NotOurs"
    experiment.delete()
    eventually(lambda: not namespace.names("StatefulSet"), "the other objects are deleted", 60.0)
    (kept,) = namespace.list("PersistentVolumeClaim")
    assert "ownerReferences" not in kept["metadata"]
    assert kept["metadata"].get("labels") is None
    assert kept["spec"]["resources"]["requests"]["storage"] == "5Gi"


@pytest.mark.parametrize(
    "changes",
    [
        {"servers__tolerations": [{"key": ["a"]}]},
        {"servers__resources": {"limits": {"cpu": "1e400"}}},
        {"trainer__affinity": {"nodeAffinity": [1]}},
        {"trainer__volumes": [{"name": "v", "emptyDir": {"sizeLimit": "many"}}]},
    ],
)
def test_a_spec_that_cannot_be_carried_out_is_refused_or_explained(
    experiment: Experiment, changes: dict[str, Any]
) -> None:
    try:
        experiment.apply(**changes)
    except Refused as refused:
        if refused.status != 422:
            raise
        return
    status = experiment.until(
        lambda now: any(one["type"] == "Accepted" and one["status"] == "False" for one in now.get("conditions", [])),
        "Accepted=False",
    )
    assert status["message"]
