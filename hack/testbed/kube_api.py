"""A small client of the API server for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from areal_operator.cluster import KINDS, path_of

Object = dict[str, Any]
T = TypeVar("T")
KINDS_OF_TESTS = {
    "ConfigMap": ("v1", "configmaps"),
    "TrainJob": ("trainer.kubeflow.org/v1alpha1", "trainjobs"),
    "RayCluster": ("ray.io/v1", "rayclusters"),
    "Node": ("v1", "nodes"),
    "Namespace": ("v1", "namespaces"),
    "PersistentVolume": ("v1", "persistentvolumes"),
    "StorageClass": ("storage.k8s.io/v1", "storageclasses"),
    "LimitRange": ("v1", "limitranges"),
    "ClusterQueue": ("kueue.x-k8s.io/v1beta2", "clusterqueues"),
    "LocalQueue": ("kueue.x-k8s.io/v1beta2", "localqueues"),
    "Role": ("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings"),
    "MutatingAdmissionPolicy": ("admissionregistration.k8s.io/v1", "mutatingadmissionpolicies"),
    "MutatingAdmissionPolicyBinding": ("admissionregistration.k8s.io/v1", "mutatingadmissionpolicybindings"),
}


class Refused(Exception):
    """The API server refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """Requests as one user. Each call raises ``Refused`` if the server refuses it."""

    def __init__(self, url: str, ca: Path, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx.Client(base_url=url, verify=str(ca), headers=headers, timeout=30.0, trust_env=False)

    def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """An object, or None if it does not exist."""
        try:
            return self._request("GET", _path(kind, namespace, name))
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, namespace: str | None = None, selector: str = "", fields: str = "") -> list[Object]:
        """Objects of a kind."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        return list(self._request("GET", _path(kind, namespace), params=query)["items"])

    def create(self, obj: Object, namespace: str | None = None) -> Object:
        """Create an object."""
        return self._request("POST", _path(obj["kind"], namespace), json=obj)

    def patch(self, kind: str, namespace: str | None, name: str, change: Object, subresource: str = "") -> Object:
        """A JSON merge patch."""
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._request("PATCH", _path(kind, namespace, name, subresource), json=change, headers=headers)

    def apply(self, obj: Object, namespace: str | None = None) -> Object:
        """Server-side apply, by the field manager ``test``."""
        path = _path(obj["kind"], namespace, obj["metadata"]["name"])
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return self._request("PATCH", path, params={"fieldManager": "test"}, json=obj, headers=headers)

    def delete(self, kind: str, namespace: str | None, name: str, **options: Any) -> None:
        """Delete an object; one that does not exist is no error."""
        body = {"propagationPolicy": "Background", **options}
        try:
            self._request("DELETE", _path(kind, namespace, name), json=body)
        except Refused as error:
            if error.status != 404:
                raise

    def create_text(self, body: str, kind: str, namespace: str) -> Object:
        """Create an object from JSON text."""
        headers = {"Content-Type": "application/json"}
        return self._request("POST", _path(kind, namespace), content=body.encode(), headers=headers)

    def post(self, path: str, body: Object) -> Object:
        """Any POST request."""
        return self._request("POST", path, json=body)

    def _request(self, method: str, path: str, **more: Any) -> Object:
        for _ in range(3):
            try:
                response = self._client.request(method, path, **more)
                break
            except httpx.TransportError:  # the server is being restarted
                time.sleep(0.5)
        else:
            response = self._client.request(method, path, **more)
        if response.status_code >= 400:
            try:
                message = response.json().get("message", response.text)
            except ValueError:
                message = response.text
            raise Refused(response.status_code, message)
        return dict(response.json())


def eventually(look: Callable[[], T | None], what: str, timeout_s: float = 30.0, pause_s: float = 0.05) -> T:
    """The first result of ``look`` that is neither None nor False; fails after ``timeout_s``, naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = look()
        if result is not None and result is not False:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(pause_s)


def _path(kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
    if kind in KINDS:
        return path_of(kind, namespace, name, subresource)
    version, plural = KINDS_OF_TESTS[kind]
    parts = ["/api" if version == "v1" else "/apis", version]
    parts += ["namespaces", namespace] if namespace else []
    return "/".join([*parts, *[part for part in (plural, name, subresource) if part]])
