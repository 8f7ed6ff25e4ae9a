"""Cache of the watched children, by the name of their experiment. The resync corrects it.

kopf's indices would do, except that after a broken watch kopf lists again without reporting what was deleted in the
meantime. Here a listing replaces the cached objects, and resource versions decide which of two reports is newer.

Deleted Jobs and trainer pods stay in their last known state until the next attempt, because another controller may
delete them before the operator has recorded the outcome of the attempt.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from areal_api import resource_names
from areal_operator.manifests.base import digest
from areal_operator.observed import (
    DELETION_MISSED,
    DELETION_WATCHED,
    LAST_SEEN,
    Object,
    is_active,
    is_terminating,
    label,
)

Key = tuple[str, str]  # namespace and name of an experiment
FINGERPRINT = "areal.dev/fingerprint"
LAST_MANAGER = "areal.dev/last-manager"
OWNED = "areal.dev/owned"  # compressed fieldsV1 of the operator
MAX_DELETED = 256  # per experiment
_KEPT = ("apiVersion", "kind", "metadata", "status")
_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "labels",
    "annotations",
    "deletionTimestamp",
    "ownerReferences",
)
_JOB_SPEC = ("completions", "parallelism", "suspend")


class Store:
    """Children of all experiments, reduced to the fields that decisions need."""

    def __init__(self) -> None:
        self._children: dict[Key, dict[tuple[str, str], Object]] = {}
        self._deleted: dict[Key, dict[str, Object]] = {}  # by uid: Jobs and trainer pods of the last attempts
        self._deleted_at: dict[str, int] = {}  # uid → resource version of the deletion; a listing may be older
        self._key_by_uid: dict[str, Key] = {}  # survives an edit of the label

    def put(self, obj: Object) -> Key | None:
        """Add or update a child; returns the key of its experiment, None if it has none."""
        metadata = obj["metadata"]
        uid = metadata["uid"]
        key = self._key_by_uid.get(uid) or key_of(obj)
        if key is None or self._deleted_at.get(uid, -1) >= _version(obj):
            return key
        self._key_by_uid[uid] = key
        children = self._children.setdefault(key, {})
        old = children.get((obj["kind"], metadata["name"]))
        if old is None or _version(old) <= _version(obj):
            if old is not None and old["metadata"]["uid"] != uid:
                self._keep_deleted(key, old, DELETION_MISSED)
            children[obj["kind"], metadata["name"]] = _merged(old, obj)
        return key

    def remove(self, obj: Object) -> Key | None:
        """Remove a child that the watch reported as deleted; returns the key of its experiment."""
        metadata = obj["metadata"]
        key = self._key_by_uid.pop(metadata["uid"], None) or key_of(obj)
        self._deleted_at[metadata["uid"]] = _version(obj)
        if key is None:
            return None
        children = self._children.get(key, {})
        old = children.get((obj["kind"], metadata["name"]))
        same = old is not None and old["metadata"]["uid"] == metadata["uid"]
        self._keep_deleted(key, _merged(old if same else None, obj), DELETION_WATCHED)
        if same:
            del children[obj["kind"], metadata["name"]]
        return key

    def replace(self, kind: str, items: list[Object], version: int, namespace: str | None = None) -> set[Key]:
        """Replace all children of a kind by a listing at ``version``; returns the experiments that this changed."""
        uids = {item["metadata"]["uid"] for item in items}
        changed: set[Key] = set()
        for key, children in self._children.items():
            if namespace not in (None, key[0]):
                continue
            for place, obj in list(children.items()):
                if place[0] == kind and obj["metadata"]["uid"] not in uids and _version(obj) <= version:
                    del children[place]
                    self._keep_deleted(key, obj, DELETION_MISSED)
                    changed.add(key)
        for item in items:
            key_or_none = self._key_by_uid.get(item["metadata"]["uid"]) or key_of(item)
            before = self.get(key_or_none, kind, item["metadata"]["name"]) if key_or_none else None
            self.put(item)
            if key_or_none and (before is None or _version(before) < _version(item)):
                changed.add(key_or_none)
        self._deleted_at = {uid: at for uid, at in self._deleted_at.items() if at > version}
        return changed

    def forget(self, key: Key) -> None:
        """Drop a deleted experiment once it has no children left."""
        self._deleted.pop(key, None)
        if not self._children.get(key):
            self._children.pop(key, None)

    def objects(self, key: Key, uid: str) -> dict[str, list[Object]]:
        """Children of one experiment by kind: claims and pods by their label, everything else by the owner's uid."""
        result: dict[str, list[Object]] = {}
        for (kind, _), obj in self._children.get(key, {}).items():
            if kind in ("PersistentVolumeClaim", "Pod") or owner_uid(obj) == uid:
                result.setdefault(kind, []).append(obj)
        return result

    def deleted(self, key: Key, uid: str) -> list[Object]:
        """Deleted Jobs that the experiment owned, and deleted trainer pods."""
        objects = self._deleted.get(key, {}).values()
        return [obj for obj in objects if obj["kind"] == "Pod" or owner_uid(obj) == uid]

    def drop_deleted(self, key: Key, *, before_attempt: int) -> None:
        """Drop deleted objects of attempts whose outcome is in the status."""
        kept = {uid: obj for uid, obj in self._deleted.get(key, {}).items() if _attempt(obj) >= before_attempt}
        if kept:
            self._deleted[key] = kept
        else:
            self._deleted.pop(key, None)

    def get(self, key: Key, kind: str, name: str) -> Object | None:
        """A child by its name, whoever owns it."""
        return self._children.get(key, {}).get((kind, name))

    def _keep_deleted(self, key: Key, obj: Object, how: str) -> None:
        if obj["kind"] not in ("Job", "Pod") or label(obj, resource_names.ATTEMPT) is None:
            return
        kept = self._deleted.setdefault(key, {})
        if obj["metadata"]["uid"] in kept and how == DELETION_MISSED:
            return
        if len(kept) >= MAX_DELETED:
            kept.pop(next(iter(kept)))
        kept[obj["metadata"]["uid"]] = {**obj, LAST_SEEN: how}


def key_of(obj: Object) -> Key | None:
    """The experiment that the labels of an object name."""
    name = label(obj, resource_names.EXPERIMENT)
    return (obj["metadata"]["namespace"], name) if name else None


def owner_uid(obj: Object) -> str | None:
    """UID of the controlling owner."""
    owners = obj["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def slim(obj: Object) -> Object:
    """The fields that decisions need, and a fingerprint of those that the operator owns."""
    metadata: dict[str, Any] = {key: obj["metadata"][key] for key in _METADATA if key in obj["metadata"]}
    kept: Object = {key: obj[key] for key in _KEPT if key in obj}
    kept |= {"metadata": metadata, FINGERPRINT: fingerprint(obj), LAST_MANAGER: last_other_manager(obj)}
    if obj["kind"] != "Pod":
        kept[OWNED] = zlib.compress(json.dumps(_owned_fields(obj)).encode())
    if obj["kind"] == "PersistentVolumeClaim":
        kept["spec"] = obj["spec"]
    if obj["kind"] == "Job":
        kept["spec"] = {key: obj["spec"][key] for key in _JOB_SPEC if key in obj.get("spec", {})}
    if obj["kind"] == "Pod":
        kept["nodeName"] = (obj.get("spec") or {}).get("nodeName")
    return kept


def fingerprint(obj: Object) -> str:
    """Digest of the fields that the operator owns, with their values.

    It changes when somebody changes such a field, and not when another controller adds a field or sets the status.
    Without ownership information it covers everything but the status and what the API server writes.
    """
    if obj["kind"] == "Pod":
        return ""
    owned = _owned_fields(obj)
    if owned:
        return digest([obj["metadata"].get("uid"), *[[fields, _values_of(obj, fields)] for fields in owned]])
    metadata = {key: obj["metadata"].get(key) for key in ("labels", "annotations", "ownerReferences", "uid")}
    rest = {key: value for key, value in obj.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    return digest({**rest, "metadata": metadata})


def owns_all(known: Object, manifest: Object) -> bool:
    """Whether the operator owns every field of ``manifest`` in a cached object: nobody has changed one since."""
    owned = json.loads(zlib.decompress(known[OWNED])) if OWNED in known else []
    fields = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata")}
    metadata = {key: manifest["metadata"].get(key) for key in ("labels", "annotations")}
    return any(_covers(entry, {**fields, "metadata": metadata}) for entry in owned)


def _covers(fields: Mapping[str, Any], value: Any) -> bool:
    """Whether ``fields`` (fieldsV1) contain every leaf of ``value``; a leaf of ``fields`` is atomic."""
    if not fields or value in (None, {}, []):
        return True
    if isinstance(value, dict):
        present = {key: below for key, below in value.items() if below is not None}
        return all(f"f:{key}" in fields and _covers(fields[f"f:{key}"], below) for key, below in present.items())
    if not isinstance(value, list):
        return True
    keyed = [(json.loads(path[2:]).items(), below) for path, below in fields.items() if path.startswith("k:")]
    if not keyed:
        return all(f"v:{json.dumps(item)}" in fields for item in value if not isinstance(item, dict))
    return all(any(keys <= item.items() and _covers(below, item) for keys, below in keyed) for item in value)


def last_other_manager(obj: Object) -> str | None:
    """The field manager, other than the operator, that changed an object last (changes of the status aside)."""
    entries = [
        entry
        for entry in obj["metadata"].get("managedFields") or ()
        if entry.get("manager") != resource_names.OPERATOR and not entry.get("subresource")
    ]
    last = max(entries, key=lambda entry: str(entry.get("time")), default=None)
    return None if last is None else str(last.get("manager"))


def _owned_fields(obj: Object) -> list[Mapping[str, Any]]:
    """The operator's ``fieldsV1``: of what it applied, and of what it patched."""
    return [
        entry.get("fieldsV1") or {}
        for entry in obj["metadata"].get("managedFields") or ()
        if entry.get("manager") == resource_names.OPERATOR and not entry.get("subresource")
    ]


def _values_of(value: Any, fields: Mapping[str, Any]) -> Any:
    """``value`` reduced to ``fields``: ``f:`` is a key, ``k:`` an item by its keys, ``v:`` an item of a set."""
    if not fields or not isinstance(value, dict | list):
        return value
    result: dict[str, Any] = {}
    for path, below in fields.items():
        kind, _, name = path.partition(":")
        if kind == "f" and isinstance(value, dict):
            result[path] = _values_of(value.get(name), below)
        elif kind == "k" and isinstance(value, list):
            keys = json.loads(name).items()
            item = next((one for one in value if isinstance(one, dict) and keys <= one.items()), None)
            result[path] = _values_of(item, below)
        elif kind == "v" and isinstance(value, list):
            result[path] = json.loads(name) in value
    return result


def _merged(old: Object | None, obj: Object) -> Object:
    """The slim form of ``obj``; a pod that ended before it was deleted keeps the state in which it ended."""
    new = slim(obj)
    ended = old is not None and old["kind"] == "Pod" and not is_active(old) and not is_terminating(old)
    if old is None or not ended or old["metadata"]["uid"] != obj["metadata"]["uid"] or not is_terminating(obj):
        return new
    version = new["metadata"]["resourceVersion"]
    return {**old, "metadata": {**old["metadata"], "resourceVersion": version}}


def _attempt(obj: Object) -> int:
    text = label(obj, resource_names.ATTEMPT) or ""
    return int(text) if text.isascii() and text.isdecimal() else 0


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
