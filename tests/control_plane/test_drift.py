"""Edited and deleted objects are restored; names that are in use are reported."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from areal_operator.observed import is_terminating
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import hang, run
from hack.testbed.kube_api import Object, eventually
from hack.testbed.operator_process import OperatorProcess

CHILDREN = [
    ("ServiceAccount", "exp-run"),
    ("NetworkPolicy", "exp-run"),
    ("Service", "exp-server"),
    ("Service", "exp-trainer"),
    ("PodDisruptionBudget", "exp-server"),
    ("StatefulSet", "exp-server"),
    ("Job", "exp-trainer-1"),  # as the next attempt
]
SEVERAL: dict[str, Any] = {"servers__replicas": 2, "trainer__nodes": 2}  # a run with all of them
EDITS: list[tuple[str, str, Object, list[str]]] = [
    ("NetworkPolicy", "exp-run", {"spec": {"ingress": []}}, ["spec", "ingress"]),
    ("Service", "exp-server", {"spec": {"publishNotReadyAddresses": False}}, ["spec", "publishNotReadyAddresses"]),
    ("StatefulSet", "exp-server", {"spec": {"replicas": 5}}, ["spec", "replicas"]),
    ("PodDisruptionBudget", "exp-server", {"spec": {"maxUnavailable": 9}}, ["spec", "maxUnavailable"]),
    ("Job", "exp-trainer-1", {"spec": {"suspend": True}}, ["spec", "suspend"]),
    (
        "Service",
        "exp-trainer",
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}},
        ["metadata", "labels", "app.kubernetes.io/managed-by"],
    ),
]


def at(obj: Object | None, path: list[str]) -> Any:
    value: Any = obj
    for key in path:
        value = (value or {}).get(key)
    return value


def test_every_deleted_child_is_created_again(experiment: Experiment) -> None:
    api, name = experiment.namespace.api, experiment.namespace.name
    experiment.apply(**SEVERAL)
    experiment.until_phase("Running")
    for kind, child in CHILDREN:
        before = api.get(kind, name, child)
        assert before is not None
        api.delete(kind, name, child)

        successor = "exp-trainer-2" if kind == "Job" else child

        def is_created_again(kind: str = kind, child: str = successor, uid: str = before["metadata"]["uid"]) -> bool:
            now = api.get(kind, name, child)
            return now is not None and now["metadata"]["uid"] != uid and not now["metadata"].get("deletionTimestamp")

        eventually(is_created_again, f"{kind} {successor} exists", 120.0)
    experiment.until_phase("Running")


def test_a_deleted_secret_is_created_again_when_a_pod_waits_for_it(experiment: Experiment) -> None:
    api, namespace = experiment.namespace.api, experiment.namespace
    experiment.apply()
    experiment.until_phase("Running")
    (secret,) = namespace.list("Secret")
    name = secret["metadata"]["name"]
    namespace.behave("server", hang("ContainerCreating", ""))
    api.delete("Secret", namespace.name, name)
    api.delete("Pod", namespace.name, "exp-server-0")
    pod = eventually(lambda: _starting(namespace), "the server's next pod starts")
    api.create(_failed_mount(pod, name), namespace.name)
    eventually(lambda: namespace.names("Secret") == [name], "the Secret exists again")
    (again,) = namespace.list("Secret")
    assert again["data"] == secret["data"]  # running servers use the old key
    assert len(base64.b64decode(again["data"]["api-key"])) == 64
    namespace.behave("server", run)
    experiment.until_phase("Running")


def _starting(namespace: Namespace) -> Object | None:
    pods = [pod for pod in namespace.list("Pod") if pod["metadata"]["name"] == "exp-server-0"]
    return next((pod for pod in pods if pod["status"].get("containerStatuses") and not is_terminating(pod)), None)


def _failed_mount(pod: Object, secret: str) -> Object:
    """The event that the kubelet emits about a pod whose Secret is missing."""
    metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
    return {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {"generateName": "exp-server-0."},
        "involvedObject": {"kind": "Pod", "apiVersion": "v1", **metadata},
        "type": "Warning",
        "reason": "FailedMount",
        "message": f'MountVolume.SetUp failed for volume "areal-api-key" : secret "{secret}" not found',
    }


@pytest.mark.parametrize(("kind", "child", "change", "path"), EDITS, ids=[f"{one[0]} {one[1]}" for one in EDITS])
def test_an_edit_of_a_child_is_reverted(
    experiment: Experiment, kind: str, child: str, change: Object, path: list[str]
) -> None:
    api, name = experiment.namespace.api, experiment.namespace.name
    experiment.apply(**SEVERAL)
    experiment.until_phase("Running")
    before = at(api.get(kind, name, child), path)
    api.patch(kind, name, child, change)
    eventually(lambda: at(api.get(kind, name, child), path) == before, f"{path} is {before!r} again")


def test_additions_to_a_child_are_kept(experiment: Experiment) -> None:
    api, name = experiment.namespace.api, experiment.namespace.name
    experiment.apply()
    experiment.until_phase("Running")
    api.patch("StatefulSet", name, "exp-server", {"metadata": {"annotations": {"team": "x"}}, "spec": {"replicas": 4}})
    eventually(
        lambda: at(api.get("StatefulSet", name, "exp-server"), ["spec", "replicas"]) == 1, "the edit is reverted"
    )
    assert at(api.get("StatefulSet", name, "exp-server"), ["metadata", "annotations", "team"]) == "x"


def test_an_edited_status_is_restored(experiment: Experiment) -> None:
    api, name = experiment.namespace.api, experiment.namespace.name
    experiment.apply()
    experiment.until_phase("Running")
    api.patch("GRPOExperiment", name, "exp", {"status": {"message": "nonsense", "servers": {"ready": 7}}}, "status")
    experiment.until(lambda now: not now["message"] and now["servers"]["ready"] == 1, "the status is restored")


def test_an_object_of_somebody_else_is_left_alone_and_reported(experiment: Experiment) -> None:
    api, name = experiment.namespace.api, experiment.namespace.name
    mine = {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": "exp-server"},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "mine"}},
    }
    api.create(mine, name)
    experiment.apply()
    condition = experiment.until_reason("Accepted", "NameTaken")
    assert "Service exp-server exists" in condition["message"]
    assert at(api.get("Service", name, "exp-server"), ["spec", "selector"]) == {"app": "mine"}
    api.delete("Service", name, "exp-server")
    experiment.until_phase("Running")


def test_deleting_an_experiment_deletes_its_objects_without_the_operator(
    experiment: Experiment, operator: OperatorProcess
) -> None:
    namespace = experiment.namespace
    experiment.apply(**SEVERAL)
    experiment.until_phase("Running")
    assert not (experiment.get() or {})["metadata"].get("finalizers")
    operator.kill()
    try:
        experiment.delete()
        eventually(lambda: experiment.get() is None, "it is deleted at once", 5.0)
        kinds = {"Secret", *(kind for kind, _ in CHILDREN)}
        # The garbage collector takes up to 30 s to discover a new custom resource.
        eventually(lambda: not any(named(namespace.list(kind)) for kind in kinds), "its children are deleted", 60.0)
        assert namespace.names("PersistentVolumeClaim") == ["exp-run"]
    finally:
        operator.start()


def named(objects: list[Object]) -> list[str]:
    return [name for obj in objects if (name := str(obj["metadata"]["name"])).startswith("exp-")]


def test_an_experiment_created_again_at_once_runs(experiment: Experiment) -> None:
    experiment.apply()
    experiment.until_phase("Running")
    uid = (experiment.get() or {})["metadata"]["uid"]
    experiment.delete()
    eventually(lambda: experiment.get() is None, "it is deleted")
    experiment.apply()
    experiment.until_phase("Running")
    assert (experiment.get() or {})["metadata"]["uid"] != uid
    (stateful_set,) = experiment.namespace.list("StatefulSet")
    assert stateful_set["metadata"]["ownerReferences"][0]["uid"] != uid
