"""Cache of the watched children, by the name of their experiment.

A listing replaces the cached objects, and resource versions decide which of two reports is newer.

Deleted Jobs and trainer pods stay in their last known state until the next attempt, because another controller may
delete them before the operator has recorded the outcome of the attempt.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from areal_api import resource_names
from areal_operator.manifests import pod_groups
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
from areal_operator.queueing import kueue

Key = tuple[str, str]  # namespace and name of an experiment
FINGERPRINT = "areal.dev/fingerprint"
LAST_MANAGER = "areal.dev/last-manager"
OWNED = "areal.dev/owned"  # compressed fieldsV1 of the operator
GENERATION = "areal.dev/generation"  # of an object whose kind has generations
DIGITS = 16  # of digests in memory
MAX_DELETED = 256  # per experiment
_METADATA = ("name", "namespace", "uid", "resourceVersion", "labels", "deletionTimestamp")
_OWNER = ("kind", "name", "uid", "controller")
_ANNOTATIONS = ("areal.dev/", "batch.kubernetes.io/job-completion-index")  # the first characters of those that are read
_POD_GROUP_SPEC = ("schedulingPolicy",)
_JOB_SPEC = ("completions", "parallelism", "suspend")
_CONDITION = ("type", "status", "reason", "message")
_POD_STATUS = ("phase", "reason", "message")
_CONTAINERS = ("initContainerStatuses", "containerStatuses")
_CONTAINER = ("name", "image", "state", "lastState", "restartCount")


class Store:
    """Children of all experiments, reduced to the fields that decisions need."""

    def __init__(self) -> None:
        self._children: dict[Key, dict[tuple[str, str], Object]] = {}
        self._deleted: dict[Key, dict[str, Object]] = {}  # by uid: Jobs and trainer pods of the last attempts
        self._deleted_at: dict[str, int] = {}  # uid → resource version of the deletion; a listing may be older
        self._key_by_uid: dict[str, Key] = {}  # survives an edit of the label

    def put(self, obj: Object) -> Key | None:
        """Add or update a child; returns the key of its experiment if a decision may depend on what has changed."""
        return self._put(obj, slim)

    def put_slim(self, obj: Object) -> None:
        """Add or update a child of which ``slim`` has already kept the fields."""
        self._put(obj, lambda slimmed, _: slimmed)

    def _put(self, obj: Object, slim_of: Callable[[Object, Object | None], Object]) -> Key | None:
        metadata = obj["metadata"]
        uid = metadata["uid"]
        key = self._key_by_uid.get(uid) or key_of(obj)
        if key is None or self._deleted_at.get(uid, -1) >= _version(obj):
            return None
        self._key_by_uid[uid] = key
        children = self._children.setdefault(key, {})
        old = children.get((obj["kind"], metadata["name"]))
        if old is not None and _version(old) >= _version(obj):
            return None
        if old is not None and old["metadata"]["uid"] != uid:
            self._keep_deleted(key, old, DELETION_MISSED)
        new = children[obj["kind"], metadata["name"]] = _merged(old, obj, slim_of(obj, old))
        return key if old is None or _without_version(old) != _without_version(new) else None

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
        self._keep_deleted(key, _merged(old if same else None, obj, slim(obj)), DELETION_WATCHED)
        if same:
            del children[obj["kind"], metadata["name"]]
        return key

    def replace(self, kind: str, items: list[Object], version: int, namespace: str | None = None) -> set[Key]:
        """Replace all children of a kind by a listing at ``version``; returns the experiments that this changed."""
        changed = {key for item in items if (key := self.put(item)) is not None}
        uids = {item["metadata"]["uid"] for item in items}
        return changed | self.prune(kind, uids, version, namespace)

    def prune(self, kind: str, uids: Collection[str], version: int, namespace: str | None = None) -> set[Key]:
        """Remove the children of a kind that a listing at ``version`` lacks; returns the experiments that had them."""
        changed: set[Key] = set()
        for key, children in self._children.items():
            if namespace not in (None, key[0]):
                continue
            for place, obj in list(children.items()):
                uid = obj["metadata"]["uid"]
                if place[0] == kind and uid not in uids and _version(obj) <= version:
                    del children[place]
                    self._key_by_uid.pop(uid, None)
                    self._keep_deleted(key, obj, DELETION_MISSED)
                    changed.add(key)
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


def slim(obj: Object, old: Object | None = None) -> Object:
    """The fields that decisions need, and a fingerprint of those that the operator owns.

    ``old``: what an earlier version led to. Most versions differ in the status alone and have the same fingerprint.
    """
    kind, metadata = obj["kind"], _shared(_only(obj["metadata"], _METADATA))
    annotations = obj["metadata"].get("annotations") or {}
    kept_annotations = {key: value for key, value in annotations.items() if key.startswith(_ANNOTATIONS)}
    metadata["annotations"] = _shared(kept_annotations)
    owners = obj["metadata"].get("ownerReferences") or ()
    metadata["ownerReferences"] = [_shared(_only(owner, _OWNER)) for owner in owners]
    if kind == "Pod":
        return {"kind": kind, "metadata": metadata, FINGERPRINT: "", "status": _pod_status(obj)}
    fields = _owned_fields(obj)
    owned = json.dumps(fields).encode()
    kept: Object = {"kind": kind, "metadata": metadata, GENERATION: obj["metadata"].get("generation")}
    kept[LAST_MANAGER] = last_other_manager(obj)
    if old is not None and fields and _same_spec(old, kept) and zlib.decompress(old[OWNED]) == owned:
        kept |= {FINGERPRINT: old[FINGERPRINT], OWNED: old[OWNED]}
    else:
        kept |= {FINGERPRINT: fingerprint(obj), OWNED: zlib.compress(owned)}
    if kind == "PersistentVolumeClaim":
        metadata["ownerReferences"] = obj["metadata"].get("ownerReferences") or []
        kept |= {"spec": obj["spec"], "status": _only(obj.get("status"), ("phase",))}
    if kind == kueue.WORKLOAD:
        metadata["generation"] = obj["metadata"].get("generation")
        kept |= kueue.slim_workload(obj)
    if kind in pod_groups.KINDS:
        kept["spec"] = _only(obj.get("spec"), _POD_GROUP_SPEC)
    if kind == "Job":
        kept |= {"spec": _only(obj.get("spec"), _JOB_SPEC), "status": {"conditions": _conditions(obj)}}
    return kept


def _same_spec(old: Object, new: Object) -> bool:
    """Whether two versions of an object have the same spec and the same metadata of ours.

    Whoever else changes a label or an annotation of ours takes over its ownership.
    """
    names = ("uid", "labels", "annotations", "ownerReferences")
    same = all(old["metadata"].get(name) == new["metadata"].get(name) for name in names)
    return same and new[GENERATION] is not None and old.get(GENERATION) == new[GENERATION]


def _pod_status(pod: Object) -> Object:
    status = pod.get("status") or {}
    kept = {**_only(status, _POD_STATUS), "conditions": _conditions(pod)}
    for containers in _CONTAINERS:
        if status.get(containers):
            kept[containers] = [_only(container, _CONTAINER) for container in status[containers]]
    return kept


def _conditions(obj: Object) -> list[Object]:
    return [_only(condition, _CONDITION) for condition in (obj.get("status") or {}).get("conditions") or ()]


def _only(fields: Mapping[str, Any] | None, names: tuple[str, ...]) -> Object:
    return {name: fields[name] for name in names if name in fields} if fields else {}


def _shared(value: Any) -> Any:
    """``value`` with one copy of each text: names, labels and owners repeat in all children of an experiment."""
    if isinstance(value, dict):
        return {_shared(key): _shared(item) for key, item in value.items()}
    return sys.intern(value) if isinstance(value, str) else value


def _without_version(obj: Object) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": None}, GENERATION: None}


def fingerprint(obj: Object) -> str:
    """Digest of the fields that the operator owns, with their values.

    It changes when somebody changes such a field, and not when another controller adds a field or sets the status.
    Without ownership information it covers everything but the status and what the API server writes.
    """
    if obj["kind"] == "Pod":
        return ""
    owned = _owned_fields(obj)
    if owned:
        values = [[fields, _values_of(obj, fields)] for fields in owned]
        return digest([obj["metadata"].get("uid"), *values])[:DIGITS]
    metadata = {key: obj["metadata"].get(key) for key in ("labels", "annotations", "ownerReferences", "uid")}
    rest = {key: value for key, value in obj.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    return digest({**rest, "metadata": metadata})[:DIGITS]


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
        # Of an empty list whose items have keys the API server records no ownership.
        present = {key: below for key, below in value.items() if below not in (None, {}, [])}
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


def _merged(old: Object | None, obj: Object, new: Object) -> Object:
    """``new``, the slim form of ``obj``; a pod that ended before it was deleted keeps the state in which it ended."""
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
