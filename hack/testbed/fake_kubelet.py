"""Plays the kubelets and the volume provisioner: scheduled pods run, fail or end as a test asks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from areal_api import resource_names
from hack.testbed.kube_api import Api, Object, Refused

NODES = ("node-a", "node-b")
CLASS = "test"
SELECTOR = resource_names.selector({resource_names.MANAGED_BY: resource_names.OPERATOR})
CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "500", "nvidia.com/gpu": "16"}
PERIOD_S = 0.1
Behaviour = Callable[[Object], Object | None]  # pod → its status; None: no change yet


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _container(pod: Object, **state: Any) -> Object:
    containers = pod["spec"]["containers"]
    main = next((one for one in containers if one["name"] in ("server", "trainer")), containers[0])
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
    now = _now()
    kept = [one for one in pod["status"].get("conditions", []) if one["type"] in ("PodScheduled", "DisruptionTarget")]
    truth = "True" if ready else "False"
    return {
        "phase": phase,
        "startTime": now,
        "conditions": [*kept, {"type": "Ready", "status": truth, "lastTransitionTime": now}],
        "containerStatuses": [_container(pod, **state)],
    }


def run(pod: Object) -> Object | None:
    """The main container runs and is ready."""
    return _status(pod, "Running", ready=True, running={"startedAt": _now()})


def wait(pod: Object) -> Object | None:
    """The pod stays as it is."""
    return None


def end(exit_code: int, message: str = "", reason: str = "Error") -> Behaviour:
    """The main container exits."""

    def behave(pod: Object) -> Object | None:
        now = _now()
        state = {"exitCode": exit_code, "reason": reason if exit_code else "Completed", "message": message}
        times = {"startedAt": now, "finishedAt": now}
        return _status(pod, "Failed" if exit_code else "Succeeded", terminated={**state, **times})

    return behave


def end_beside_sidecar(exit_code: int, sidecar: str, message: str = "") -> Behaviour:
    """The main container exits, while an injected container keeps the pod running."""

    def behave(pod: Object) -> Object | None:
        status = end(exit_code, message)(pod) or {}
        running = {"name": sidecar, "image": "s", "imageID": "", "ready": True, "restartCount": 0, "lastState": {}}
        containers = [
            *status["containerStatuses"],
            {**running, "state": {"running": {"startedAt": status["startTime"]}}},
        ]
        return {**status, "phase": "Running", "containerStatuses": containers}

    return behave


def run_unready(pod: Object) -> Object | None:
    """The main container runs but is not ready, like a server that loads its model."""
    return _status(pod, "Running", running={"startedAt": _now()})


def hang(reason: str, message: str, **more: Any) -> Behaviour:
    """The main container stays in the state Waiting."""
    return lambda pod: _status(pod, "Pending", waiting={"reason": reason, "message": message}, **more)


class FakeKubelet:
    """Behaviours by namespace and component (``server`` or ``trainer``); without one, pods run."""

    def __init__(
        self,
        api: Api,
        *,
        selector: str = SELECTOR,
        fields: str = "",
        period_s: float = PERIOD_S,
        capacity: Mapping[str, str] = CAPACITY,
    ) -> None:
        """It plays the pods with these labels and fields. ``capacity`` is that of each node."""
        self._api = api
        self._selector = selector
        self._fields = fields
        self._period_s = period_s
        self._capacity = dict(capacity)
        self._behaviours: dict[tuple[str, str], Behaviour] = {}
        self._applied: dict[str, Behaviour] = {}
        self.stuck: set[str] = set()  # namespaces whose deleted pods do not end
        self.unprovisioned: set[str] = set()  # namespaces whose claims get no volume
        self.classes = {CLASS}  # storage classes whose claims get a volume
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)

    def start(self) -> None:
        """Create the nodes and the storage class, and start."""
        for name in NODES:
            node = {
                "kind": "Node",
                "apiVersion": "v1",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            }
            self._api.create(node)
            status = {
                "capacity": self._capacity,
                "allocatable": self._capacity,
                "conditions": [{"type": "Ready", "status": "True"}],
            }
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
        """Stop."""
        self._stopping.set()
        self._thread.join()

    def set(self, namespace: str, component: str, behaviour: Behaviour) -> None:
        """Set the behaviour of a component's pods, including existing ones."""
        self._behaviours[namespace, component] = behaviour

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            for update in (self._update_pods, self._update_claims):
                try:
                    update()
                except (Refused, OSError):
                    continue  # a conflict, or the server is unavailable
                except Exception as error:  # noqa: BLE001 - the thread must outlive a restart of the server
                    print(f"kubelet: {error!r}")

    def _update_pods(self) -> None:
        for pod in self._api.list("Pod", selector=self._selector, fields=self._fields):
            try:
                self._update_pod(pod)
            except Refused:
                continue

    def _update_pod(self, pod: Object) -> None:
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
        behaviour = self._behaviours.get((namespace, metadata.get("labels", {}).get("areal.dev/component", "")), run)
        if ended or self._applied.get(uid) is behaviour:
            return
        status = behaviour(pod)
        if status is not None:
            self._api.patch("Pod", namespace, name, {"status": status}, "status")
        self._applied[uid] = behaviour

    def _update_claims(self) -> None:
        for claim in self._api.list("PersistentVolumeClaim", selector=SELECTOR):
            spec, namespace = claim["spec"], claim["metadata"]["namespace"]
            if (
                spec.get("volumeName")
                or namespace in self.unprovisioned
                or spec["storageClassName"] not in self.classes
            ):
                continue
            self.provision(claim)

    def provision(self, claim: Object) -> None:
        """Create a volume for a claim."""
        metadata, spec = claim["metadata"], claim["spec"]
        reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": metadata["namespace"]}
        volume = {
            "kind": "PersistentVolume",
            "apiVersion": "v1",
            "metadata": {"name": f"pv-{metadata['uid']}"},
            "spec": {
                "capacity": spec["resources"]["requests"],
                "accessModes": spec["accessModes"],
                "storageClassName": spec["storageClassName"],
                "hostPath": {"path": "/nonexistent"},
                "claimRef": {**reference, "name": metadata["name"], "uid": metadata["uid"]},
            },
        }
        try:
            self._api.create(volume)
        except Refused as error:
            if error.status != 409:
                raise
