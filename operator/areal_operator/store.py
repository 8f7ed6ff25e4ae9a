"""What the watches have shown: children by the name of their experiment. A cache; the resync makes it whole again.

kopf's indices would do, but for one thing: after a watch breaks, kopf lists anew and says nothing of what was deleted
meanwhile. Here a listing replaces what was known, and the resource versions decide which of two reports is newer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from areal_api import resource_names
from areal_operator.manifests.base import digest
from areal_operator.observed import Object, label

Key = tuple[str, str]  # namespace and name of an experiment
FINGERPRINT = "areal.dev/fingerprint"
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


class Store:
    """Children of all experiments, slim."""

    def __init__(self) -> None:
        self._children: dict[Key, dict[tuple[str, str], Object]] = {}
        self._gone: dict[str, int] = {}  # uid → version of the deletion: a listing may be older than that
        self._homes: dict[str, Key] = {}  # uid → experiment, also when the label is edited

    def put(self, obj: Object) -> Key | None:
        """Take note of a child; the key of its experiment, None where it has none."""
        metadata = obj["metadata"]
        key = self._homes.get(metadata["uid"]) or key_of(obj)
        if key is None or self._gone.get(metadata["uid"], -1) >= _version(obj):
            return key
        self._homes[metadata["uid"]] = key
        known = self._children.setdefault(key, {})
        old = known.get((obj["kind"], metadata["name"]))
        if old is None or _version(old) <= _version(obj):
            known[obj["kind"], metadata["name"]] = slim(obj)
        return key

    def remove(self, obj: Object) -> Key | None:
        """Take note of a deletion."""
        metadata = obj["metadata"]
        key = self._homes.pop(metadata["uid"], None) or key_of(obj)
        self._gone[metadata["uid"]] = _version(obj)
        if key is None:
            return None
        known = self._children.get(key, {})
        old = known.get((obj["kind"], metadata["name"]))
        if old is not None and old["metadata"]["uid"] == metadata["uid"]:
            del known[obj["kind"], metadata["name"]]
        return key

    def replace(self, kind: str, items: list[Object], version: int, namespace: str | None = None) -> set[Key]:
        """All of a kind (in a namespace), as listed at ``version``; returns the experiments that this is news for."""
        uids = {item["metadata"]["uid"] for item in items}
        news: set[Key] = set()
        for key, known in self._children.items():
            if namespace not in (None, key[0]):
                continue
            for place, obj in list(known.items()):
                if place[0] == kind and obj["metadata"]["uid"] not in uids and _version(obj) <= version:
                    del known[place]
                    news.add(key)
        for item in items:
            home = self._homes.get(item["metadata"]["uid"]) or key_of(item)
            before = self.get(home, kind, item["metadata"]["name"]) if home else None
            self.put(item)
            if home and (before is None or _version(before) < _version(item)):
                news.add(home)
        self._gone = {uid: gone for uid, gone in self._gone.items() if gone > version}
        return news

    def forget(self, key: Key) -> None:
        """Drop an experiment of which nothing is left."""
        if not self._children.get(key):
            self._children.pop(key, None)

    def objects(self, key: Key, uid: str) -> dict[str, list[Object]]:
        """Children of one experiment by kind. Volume claims count by their label, all else by the owner's uid."""
        result: dict[str, list[Object]] = {}
        for (kind, _), obj in self._children.get(key, {}).items():
            if kind in ("PersistentVolumeClaim", "Pod") or owner_uid(obj) == uid:
                result.setdefault(kind, []).append(obj)
        return result

    def get(self, key: Key, kind: str, name: str) -> Object | None:
        """A child by its name, whoever owns it."""
        return self._children.get(key, {}).get((kind, name))

    def keys(self) -> Iterator[Key]:
        """Experiments of which children are known."""
        return iter(list(self._children))


def key_of(obj: Object) -> Key | None:
    """The experiment that an object says it belongs to."""
    name = label(obj, resource_names.EXPERIMENT)
    return (obj["metadata"]["namespace"], name) if name else None


def owner_uid(obj: Object) -> str | None:
    """The uid of the controlling owner."""
    owners = obj["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def slim(obj: Object) -> Object:
    """What decisions are made from, and a digest of everything that an edit may change."""
    metadata: dict[str, Any] = {key: obj["metadata"][key] for key in _METADATA if key in obj["metadata"]}
    kept: Object = {key: obj[key] for key in _KEPT if key in obj}
    kept |= {"metadata": metadata, FINGERPRINT: fingerprint(obj)}
    if obj["kind"] == "PersistentVolumeClaim":
        kept["spec"] = obj["spec"]
    if obj["kind"] == "Secret":
        kept["data"] = obj.get("data", {})
    if obj["kind"] == "Pod":
        kept["nodeName"] = (obj.get("spec") or {}).get("nodeName")
    return kept


def fingerprint(obj: Object) -> str:
    """A digest of an object without its status and without what the API server writes."""
    if obj["kind"] == "Pod":
        return ""
    metadata = {key: obj["metadata"].get(key) for key in ("labels", "annotations", "ownerReferences", "uid")}
    rest = {key: value for key, value in obj.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    return digest({**rest, "metadata": metadata})


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
