"""Cache of the watched experiments, so that a reconcile needs no request to read one. Bodies are kept compressed."""

from __future__ import annotations

import json
import zlib

from areal_operator.manifests.base import digest
from areal_operator.observed import Object
from areal_operator.status import HEALTH_FIELDS, PROGRESS_FIELDS
from areal_operator.store import Key

_UNPLANNED = frozenset(PROGRESS_FIELDS).difference(HEALTH_FIELDS)  # a plan does not depend on these fields,
_PLANNED_IF_ELASTIC = frozenset(("step", "rolloutWait", "serversIdle", "serversCurrent"))  # but for servers.autoscale


class Experiments:
    """The last known state of every experiment. Of two reports the one with the higher resource version counts."""

    def __init__(self) -> None:
        self._bodies: dict[Key, bytes] = {}
        self._versions: dict[Key, tuple[str, int]] = {}  # UID and resource version
        self._seen: dict[Key, str] = {}  # digest of what a plan depends on

    def put(self, obj: Object) -> bool:
        """Add or update an experiment; returns whether it must be reconciled. Progress alone needs none, unless it
        changes the policy's health or the number of servers may depend on it."""
        key = object_key(obj)
        metadata, status = obj["metadata"], obj.get("status") or {}
        uid, version = str(metadata["uid"]), int(metadata.get("resourceVersion") or 0)
        known_uid, known_version = self._versions.get(key, ("", 0))
        if uid == known_uid and version < known_version:
            return False
        elastic = ((obj.get("spec") or {}).get("servers") or {}).get("autoscale") is not None
        left_out = _UNPLANNED - _PLANNED_IF_ELASTIC if elastic else _UNPLANNED
        relevant = {name: value for name, value in status.items() if name not in left_out}
        seen = digest([uid, metadata.get("generation"), metadata.get("deletionTimestamp"), relevant])[:32]
        changed = self._seen.get(key) != seen
        if uid != known_uid or version != known_version or changed:
            kept = {**obj, "metadata": {name: value for name, value in metadata.items() if name != "managedFields"}}
            self._bodies[key] = zlib.compress(json.dumps(kept).encode(), 1)
        self._versions[key], self._seen[key] = (uid, version), seen
        return changed

    def get(self, key: Key) -> Object | None:
        """The body of an experiment, without the field managers; None if it does not exist."""
        body = self._bodies.get(key)
        if body is None:
            return None
        result: Object = json.loads(zlib.decompress(body))
        return result

    def refresh(self, obj: Object) -> bool:
        """Update an experiment from the response to a write, unless the watch has reported its deletion.

        Returns whether the write has changed the object.
        """
        uid, version = self._versions.get(object_key(obj), ("", 0))
        if uid != obj["metadata"]["uid"]:
            return False
        self.put(obj)
        return int(obj["metadata"]["resourceVersion"]) > version

    def remove(self, key: Key) -> None:
        """Remove a deleted experiment."""
        for cache in (self._bodies, self._versions, self._seen):
            cache.pop(key, None)

    def known(self) -> list[Key]:
        """The keys of all experiments."""
        return list(self._bodies)

    def statuses(self) -> dict[Key, Object]:
        """The statuses of all experiments."""
        return {key: (self.get(key) or {}).get("status") or {} for key in self.known()}


def object_key(obj: Object) -> Key:
    """Namespace and name."""
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
