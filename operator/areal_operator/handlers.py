"""kopf's part: watches of experiments and of what they own. Handlers only take note, and put keys on the queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import kopf

from areal_api import resource_names
from areal_api.generate.crd import GROUP, PLURAL, VERSION
from areal_operator.cluster import CHILD_KINDS, read_credentials
from areal_operator.manifests.base import digest
from areal_operator.metrics import Metrics
from areal_operator.observed import Object
from areal_operator.status import PROGRESS_FIELDS
from areal_operator.store import Key, Store
from areal_operator.work_queue import WorkQueue

STARTING_S = 60.0
logger = logging.getLogger(__name__)


class Experiments:
    """The experiments that the watch has shown, slim, and what of each was worked on last."""

    def __init__(self) -> None:
        self.bodies: dict[Key, Object] = {}
        self._seen: dict[Key, str] = {}

    def put(self, obj: Object) -> bool:
        """Take note; whether there is news for a reconcile. Progress is none."""
        key = object_key(obj)
        metadata, status = obj["metadata"], obj.get("status") or {}
        self.bodies[key] = {"status": status}
        ours = {name: value for name, value in status.items() if name not in PROGRESS_FIELDS}
        seen = digest([metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp"), ours])
        news = self._seen.get(key) != seen
        self._seen[key] = seen
        return news

    def remove(self, key: Key) -> None:
        """Take note of a deletion."""
        self.bodies.pop(key, None)
        self._seen.pop(key, None)


def object_key(obj: Object) -> Key:
    """Namespace and name."""
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def make_registry(store: Store, experiments: Experiments, queue: WorkQueue[Key], metrics: Metrics) -> Any:
    """kopf's registry with our handlers: events only, which write nothing on any object and need no finalizers."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return read_credentials()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def experiment_event(event: Any, **_: Any) -> None:
        metrics.last_event_at = time.monotonic()
        obj = event["object"]
        key = object_key(obj)
        if event["type"] == "DELETED":
            experiments.remove(key)
            queue.add(key)
        elif experiments.put(obj):
            queue.add(key)

    for kind, (api_version, plural) in CHILD_KINDS.items():
        group, _, version = api_version.rpartition("/")
        kopf.on.event(group, version, plural, id=f"child-{plural}", registry=registry)(
            _child_handler(kind, store, queue, metrics)
        )
    return registry


def _child_handler(kind: str, store: Store, queue: WorkQueue[Key], metrics: Metrics) -> Callable[..., Any]:
    async def child_event(event: Any, **_: Any) -> None:
        metrics.last_event_at = time.monotonic()
        obj = {**event["object"], "kind": kind}
        key = store.remove(obj) if event["type"] == "DELETED" else store.put(obj)
        if key is not None:
            queue.add(key)

    return child_event


class WatchGuard:
    """Sees whether kopf's watches live: one that the API server refuses ends, and kopf goes on without it, blind."""

    def __init__(self) -> None:
        self._wanted = {plural for _, plural in CHILD_KINDS.values()} | {PLURAL}
        self._seen: set[str] = set()
        self._began = time.monotonic()

    def problem(self) -> str | None:
        """What is wrong; None while all watches live."""
        names = [task.get_name() for task in asyncio.all_tasks() if not task.done()]
        alive = {plural for plural in self._wanted if any(name.startswith(f"watcher for {plural}.") for name in names)}
        self._seen |= alive
        ended = sorted(self._seen - alive)
        if ended:
            return f"the watch of {', '.join(ended)} has ended"
        missing = sorted(self._wanted - alive)
        if missing and time.monotonic() - self._began > STARTING_S:
            return f"{', '.join(missing)} cannot be watched; is the custom resource definition installed?"
        return None


def kopf_settings() -> kopf.OperatorSettings:
    """kopf's settings: watches of labelled children only, requests that end, no posting of its own."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 10.0
    settings.watching.server_timeout = 270
    settings.execution.default_backoff = 5.0
    settings.scanning.disabled = True
    selector = f"{resource_names.MANAGED_BY}={resource_names.OPERATOR}"
    for api_version, plural in CHILD_KINDS.values():
        group, _, version = api_version.rpartition("/")
        settings.watching.label_selectors[group, version, plural] = selector
    return settings
