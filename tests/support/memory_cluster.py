"""The operator's client with an API server in memory: enough of it for the reconciler's own logic.

``tests/control_plane`` runs the same logic on a real API server, which alone shows what Kubernetes accepts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from areal_operator.cluster import KINDS, ApiError, Cluster
from areal_operator.observed import Object

Check = Callable[[str, Object], ApiError | None]  # method and new object → refusal


class MemoryCluster(Cluster):
    """Objects by kind, namespace and name; ``writes`` lists what changed them."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.writes: list[tuple[str, str, str]] = []  # method, kind and name
        self.requests: list[tuple[str, str, str]] = []
        self.check: Check = lambda method, obj: None
        self.mutate_on_create: Callable[[Object], None] = lambda obj: None
        self._version = 0

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = "application/json",
    ) -> Any:
        """Serve one request."""
        of_kind, namespace, name, subresource = _parsed(path)
        self.requests.append((method, of_kind, name))
        if method == "GET" and not name:
            return self._list(of_kind, namespace, query or {})
        key = (of_kind, namespace, name or str((body or {}).get("metadata", {}).get("name")))
        if method == "GET":
            return copy.deepcopy(self._existing(key))
        manager = (query or {}).get("fieldManager", "unknown")
        if method == "DELETE":
            self._delete(key, body or {})
            return {}
        return self._write(method, key, copy.deepcopy(body or {}), subresource, manager, apply="apply-patch" in kind)

    def edit(self, kind: str, namespace: str, name: str, changes: Object, manager: str = "somebody") -> Object:
        """A merge patch by another client; returns the new object."""
        obj = self._merged((kind, namespace, name), changes, manager, "")
        return copy.deepcopy(obj)

    def add(self, obj: Object) -> Object:
        """Create an object as another client."""
        metadata = obj["metadata"]
        return self._write("POST", (obj["kind"], metadata["namespace"], metadata["name"]), obj, "", "somebody", False)

    def remove(self, kind: str, namespace: str, name: str) -> Object:
        """Delete an object as another client; returns its last state with the version of the deletion."""
        obj = self.objects.pop((kind, namespace, name))
        self._version += 1
        return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self._version)}}

    def names(self, kind: str) -> list[str]:
        """Names of all objects of a kind."""
        return sorted(name for of_kind, _, name in self.objects if of_kind == kind)

    def _list(self, kind: str, namespace: str, query: Mapping[str, str]) -> Object:
        pairs = [pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair]
        items = [
            copy.deepcopy(obj)
            for (of_kind, of_namespace, _), obj in self.objects.items()
            if of_kind == kind
            and namespace in ("", of_namespace)
            and all((obj["metadata"].get("labels") or {}).get(key) == value for key, value in pairs)
        ]
        return {"items": items, "metadata": {"resourceVersion": str(self._version)}}

    def _existing(self, key: tuple[str, str, str]) -> Object:
        if key not in self.objects:
            raise ApiError(404, "NotFound", f"{key[0]} {key[2]} not found")
        return self.objects[key]

    def _delete(self, key: tuple[str, str, str], body: Object) -> None:
        obj = self._existing(key)
        if body.get("preconditions", {}).get("uid") not in (None, obj["metadata"]["uid"]):
            raise ApiError(409, "Conflict", "the uid differs")
        self.writes.append(("DELETE", key[0], key[2]))
        del self.objects[key]

    def _write(
        self, method: str, key: tuple[str, str, str], body: Object, subresource: str, manager: str, apply: bool
    ) -> Object:
        if method == "POST" and key in self.objects:
            raise ApiError(409, "AlreadyExists", "it exists")
        expected = body.get("metadata", {}).pop("resourceVersion", None) if method == "PATCH" else None
        if (
            method == "PATCH"
            and key in self.objects
            and expected not in (None, self.objects[key]["metadata"]["resourceVersion"])
        ):
            raise ApiError(409, "Conflict", "the object has been modified")
        self.writes.append(("APPLY" if apply else method, key[0], key[2]))
        refusal = self.check(method, {**body, "kind": key[0]})
        if refusal is not None:
            raise refusal
        if method == "PUT":
            self._existing(key)
            self.objects[key] = body
            return copy.deepcopy(self._changed(key))
        if method == "POST" or (apply and key not in self.objects):
            if apply and body["metadata"].get("uid"):
                raise ApiError(409, "Conflict", "the uid does not exist")
            return copy.deepcopy(self._create(key, body, manager, "Apply" if apply else "Update"))
        if not apply:
            return copy.deepcopy(self._merged(key, body, manager, subresource))
        return copy.deepcopy(self._applied(key, body, manager, subresource))

    def _create(self, key: tuple[str, str, str], body: Object, manager: str, operation: str) -> Object:
        entry = {"manager": manager, "operation": operation, "fieldsV1": _fields(body)}
        self.mutate_on_create(body)
        metadata = {**body["metadata"], "namespace": key[1], "uid": f"uid-{len(self.writes)}", "generation": 1}
        self.objects[key] = {**body, "kind": key[0], "metadata": {**metadata, "managedFields": [entry]}}
        return self._changed(key)

    def _applied(self, key: tuple[str, str, str], body: Object, manager: str, subresource: str) -> Object:
        obj = self._existing(key)
        if body["metadata"].get("uid") not in (None, obj["metadata"]["uid"]):
            raise ApiError(409, "Conflict", "the uid differs")
        if subresource:
            obj["status"] = {**obj.get("status", {}), **body["status"]}
            return self._changed(key)
        body["metadata"].pop("uid", None)
        _merge(obj, body)
        entries = [
            one for one in obj["metadata"]["managedFields"] if (one["manager"], one["operation"]) != (manager, "Apply")
        ]
        entry = {"manager": manager, "operation": "Apply", "fieldsV1": _fields(body)}
        obj["metadata"]["managedFields"] = [*entries, entry]
        return self._changed(key)

    def _merged(self, key: tuple[str, str, str], changes: Object, manager: str, subresource: str) -> Object:
        obj = self._existing(key)
        changes = copy.deepcopy(changes)
        uid = changes.get("metadata", {}).pop("uid", None)
        if uid not in (None, obj["metadata"]["uid"]):
            raise ApiError(409, "Conflict", "the uid differs")
        changed = _differing(obj, changes)
        for entry in obj["metadata"].get("managedFields", ()):
            _disown(entry["fieldsV1"], changed)
        _merge(obj, changes)
        if changed and not subresource:
            entry = {"manager": manager, "operation": "Update", "fieldsV1": _fields(changed)}
            obj["metadata"].setdefault("managedFields", []).append(entry)
        return self._changed(key)

    def _changed(self, key: tuple[str, str, str]) -> Object:
        self._version += 1
        obj = self.objects[key]
        obj["metadata"]["resourceVersion"] = str(self._version)
        return obj


def _parsed(path: str) -> tuple[str, str, str, str]:
    """Kind, namespace, name and subresource of a path."""
    parts = path.split("/")[3 if path.startswith("/api/") else 4 :]
    namespace = ""
    if parts[0] == "namespaces":
        namespace, parts = parts[1], parts[2:]
    kind = next(kind for kind, (_, plural) in KINDS.items() if plural == parts[0])
    return kind, namespace, parts[1] if len(parts) > 1 else "", parts[2] if len(parts) > 2 else ""


def _fields(value: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """fieldsV1 of an object; lists are atomic."""
    if not isinstance(value, dict):
        return {}
    skipped = {(): ("kind", "apiVersion"), ("metadata",): ("name", "namespace", "uid")}.get(path, ())
    return {f"f:{key}": _fields(below, (*path, key)) for key, below in value.items() if key not in skipped}


def _merge(target: Object, changes: Object) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif value is None:
            target.pop(key, None)
        else:
            target[key] = value


def _differing(obj: Any, changes: Any) -> Any:
    result = {}
    for key, value in changes.items():
        old = obj.get(key) if isinstance(obj, dict) else None
        if isinstance(value, dict) and isinstance(old, dict):
            below = _differing(old, value)
            if below:
                result[key] = below
        elif old != value:
            result[key] = value
    return result


def _disown(fields: dict[str, Any], changed: Object) -> None:
    for key, value in changed.items():
        below = fields.get(f"f:{key}")
        if below is None:
            continue
        if isinstance(value, dict) and below:
            _disown(below, value)
        else:
            del fields[f"f:{key}"]
