"""Plays the kubelets and the volume provisioner: pods that the scheduler bound run, fail or end as a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from hack.testbed.kube_api import Api, Object, Refused

NODES = ("node-a", "node-b")
CLASS = "test"
SELECTOR = "app.kubernetes.io/managed-by=areal-operator"
Behaviour = Callable[[Object], Object | None]  # pod → its status, None: nothing happens yet


def _container(pod: Object, **state: Any) -> Object:
    main = pod["spec"]["containers"][0]
    return {
        "name": main["name"],
        "image": main["image"],
        "imageID": "",
        "ready": "running" in state,
        "restartCount": state.pop("restarts", 0),
        "lastState": state.pop("last", {}),
        "state": state,
    }


def _status(pod: Object, phase: str, *, ready: bool = False, **state: Any) -> Object:
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    kept = [one for one in pod["status"].get("conditions", []) if one["type"] in ("PodScheduled", "DisruptionTarget")]
    truth = "True" if ready else "False"
    return {
        "phase": phase,
        "startTime": now,
        "conditions": [*kept, {"type": "Ready", "status": truth, "lastTransitionTime": now}],
        "containerStatuses": [_container(pod, **state)],
    }


def run(pod: Object) -> Object | None:
    """The containers run and are ready."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return _status(pod, "Running", ready=True, running={"startedAt": now})


def wait(pod: Object) -> Object | None:
    """Nothing happens."""
    return None


def end(exit_code: int, message: str = "", reason: str = "Error") -> Behaviour:
    """The main container ends."""

    def behave(pod: Object) -> Object | None:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        state = {"exitCode": exit_code, "reason": reason if exit_code else "Completed", "message": message}
        times = {"startedAt": now, "finishedAt": now}
        return _status(pod, "Failed" if exit_code else "Succeeded", terminated={**state, **times})

    return behave


def hang(reason: str, message: str, **more: Any) -> Behaviour:
    """The main container waits for something."""
    return lambda pod: _status(pod, "Pending", waiting={"reason": reason, "message": message}, **more)


class FakeKubelet:
    """Behaviours by namespace and component (``server`` or ``trainer``); pods run where none is set."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._behaviours: dict[tuple[str, str], Behaviour] = {}
        self._told: dict[str, Behaviour] = {}
        self.stuck: set[str] = set()  # namespaces whose deleted pods do not end
        self.unprovisioned: set[str] = set()  # namespaces whose claims get no volume
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)

    def start(self) -> None:
        """Make the nodes and the storage class, and begin."""
        for name in NODES:
            node = {
                "kind": "Node",
                "apiVersion": "v1",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            }
            self._api.create(node)
            room = {"cpu": "64", "memory": "256Gi", "pods": "500", "nvidia.com/gpu": "16"}
            status = {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]}
            self._api.patch("Node", None, name, {"status": status}, "status")
            self._api.patch("Node", None, name, {"spec": {"taints": []}})
        self._api.create(
            {
                "kind": "StorageClass",
                "apiVersion": "storage.k8s.io/v1",
                "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
                "provisioner": "test.areal.dev/none",
                "allowVolumeExpansion": True,
            }
        )
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()

    def set(self, namespace: str, component: str, behaviour: Behaviour) -> None:
        """From now on pods of a component behave so, those that are there too."""
        self._behaviours[namespace, component] = behaviour

    def _run(self) -> None:
        while not self._stopping.wait(0.1):
            for look in (self._pods, self._claims):
                try:
                    look()
                except (Refused, OSError):
                    continue  # changed meanwhile, or the server is away
                except Exception as error:  # noqa: BLE001 - the thread must outlive a restart of the server
                    print(f"kubelet: {error!r}")

    def _pods(self) -> None:
        for pod in self._api.list("Pod", selector=SELECTOR):
            try:
                self._look_after(pod)
            except Refused:
                continue

    def _look_after(self, pod: Object) -> None:
        metadata = pod["metadata"]
        namespace, name, uid = metadata["namespace"], metadata["name"], metadata["uid"]
        if not pod["spec"].get("nodeName"):
            return
        ended = pod["status"].get("phase") in ("Succeeded", "Failed")
        if metadata.get("deletionTimestamp"):
            if namespace not in self.stuck:
                if not ended:
                    self._api.patch("Pod", namespace, name, {"status": end(143)(pod)}, "status")
                self._api.delete("Pod", namespace, name, gracePeriodSeconds=0, preconditions={"uid": uid})
            return
        behaviour = self._behaviours.get((namespace, metadata["labels"].get("areal.dev/component", "")), run)
        if ended or self._told.get(uid) is behaviour:
            return
        status = behaviour(pod)
        if status is not None:
            self._api.patch("Pod", namespace, name, {"status": status}, "status")
        self._told[uid] = behaviour

    def _claims(self) -> None:
        for claim in self._api.list("PersistentVolumeClaim", selector=SELECTOR):
            metadata, spec = claim["metadata"], claim["spec"]
            if (
                spec.get("volumeName")
                or metadata["namespace"] in self.unprovisioned
                or spec["storageClassName"] != CLASS
            ):
                continue
            about = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": metadata["namespace"]}
            volume = {
                "kind": "PersistentVolume",
                "apiVersion": "v1",
                "metadata": {"name": f"pv-{metadata['uid']}"},
                "spec": {
                    "capacity": spec["resources"]["requests"],
                    "accessModes": spec["accessModes"],
                    "storageClassName": CLASS,
                    "hostPath": {"path": "/nonexistent"},
                    "claimRef": {**about, "name": metadata["name"], "uid": metadata["uid"]},
                },
            }
            try:
                self._api.create(volume)
            except Refused as error:
                if error.status != 409:
                    raise
