"""kopf's part: watches of experiments and their children. Handlers only update caches and queue keys."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import kopf

from areal_api import resource_names
from areal_api.errors import describe
from areal_api.generate.crd import GROUP, PLURAL, VERSION
from areal_operator.cluster import CHILD_KINDS, read_credentials
from areal_operator.manifests.base import digest
from areal_operator.metrics import Metrics
from areal_operator.observed import Object
from areal_operator.status import HEALTH_FIELDS, PROGRESS_FIELDS
from areal_operator.store import Key, Store
from areal_operator.work_queue import WorkQueue

WATCH_START_TIMEOUT_S = 60.0
logger = logging.getLogger(__name__)


class Experiments:
    """Cache of the watched experiments: their statuses, and a digest of what a reconcile depends on."""

    def __init__(self) -> None:
        self.bodies: dict[Key, Object] = {}
        self._seen: dict[Key, str] = {}

    def put(self, obj: Object) -> bool:
        """Add or update an experiment; returns whether it must be reconciled. Progress alone needs none, unless it
        changes the policy's health."""
        key = object_key(obj)
        metadata, status = obj["metadata"], obj.get("status") or {}
        self.bodies[key] = {"status": status}
        ignored = set(PROGRESS_FIELDS).difference(HEALTH_FIELDS)
        relevant = {name: value for name, value in status.items() if name not in ignored}
        seen = digest([metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp"), relevant])
        changed = self._seen.get(key) != seen
        self._seen[key] = seen
        return changed

    def remove(self, key: Key) -> None:
        """Remove a deleted experiment."""
        self.bodies.pop(key, None)
        self._seen.pop(key, None)


def object_key(obj: Object) -> Key:
    """Namespace and name."""
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def make_registry(store: Store, experiments: Experiments, queue: WorkQueue[Key], metrics: Metrics) -> Any:
    """kopf's registry with event handlers only: they write nothing to any object and need no finalizers."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return read_credentials()

    on_experiment = experiment_handler(experiments, queue, metrics)
    kopf.on.event(GROUP, VERSION, PLURAL, id="experiment", registry=registry)(on_experiment)
    for kind, (api_version, plural) in CHILD_KINDS.items():
        group, _, version = api_version.rpartition("/")
        on_child = child_handler(kind, store, queue, metrics)
        kopf.on.event(group, version, plural, id=f"child-{plural}", registry=registry)(on_child)
    return registry


def experiment_handler(experiments: Experiments, queue: WorkQueue[Key], metrics: Metrics) -> Callable[..., Any]:
    """The handler of events of experiments."""

    def handle(event: Any) -> None:
        metrics.last_event_at = time.monotonic()
        obj = event["object"]
        key = object_key(obj)
        if event["type"] == "DELETED":
            experiments.remove(key)
            queue.add(key)
        elif experiments.put(obj):
            queue.add(key)

    return _isolated(handle)


def child_handler(kind: str, store: Store, queue: WorkQueue[Key], metrics: Metrics) -> Callable[..., Any]:
    """The handler of events of one kind of children."""

    def handle(event: Any) -> None:
        metrics.last_event_at = time.monotonic()
        obj = {**event["object"], "kind": kind}
        key = store.remove(obj) if event["type"] == "DELETED" else store.put(obj)
        if key is not None:
            queue.add(key)

    return _isolated(handle)


def _isolated(handle: Callable[[Any], None]) -> Callable[..., Any]:
    """``handle`` as kopf calls it. An error that one object causes is logged, and ends neither watch nor process."""

    async def on_event(event: Any, **_: Any) -> None:
        try:
            handle(event)
        except Exception as error:  # noqa: BLE001 - whatever one object contains, the others are still watched
            metadata = (event.get("object") or {}).get("metadata") or {}
            where = f"{metadata.get('namespace')}/{metadata.get('name')}"
            logger.error("%s: the watch event cannot be processed: %s", where, describe(error))

    return on_event


class WatchGuard:
    """Detects dead watches: when the API server rejects one, kopf drops it silently and keeps running."""

    def __init__(self, namespaces: Collection[str] = (), *, tasks: Callable[[], Iterable[str]] | None = None) -> None:
        plurals = [plural for _, plural in CHILD_KINDS.values()] + [PLURAL]
        self._expected = {(plural, namespace) for plural in plurals for namespace in (namespaces or (None,))}
        self._tasks = tasks or _running_tasks
        self._seen: set[tuple[str, str | None]] = set()
        self._started_at = time.monotonic()

    def dead(self) -> dict[str | None, list[str]]:
        """Kinds whose watch has ended, or did not start in time, by namespace (None: all namespaces)."""
        names = list(self._tasks())
        alive = {watch for watch in self._expected if any(_is_watch(name, *watch) for name in names)}
        self._seen |= alive
        late = time.monotonic() - self._started_at > WATCH_START_TIMEOUT_S
        dead: dict[str | None, list[str]] = {}
        for plural, namespace in sorted((self._expected if late else self._seen) - alive, key=str):
            dead.setdefault(namespace, []).append(plural)
        return dead


def _is_watch(task: str, plural: str, namespace: str | None) -> bool:
    """Whether a task has the name that kopf gives to the watch of a kind in a namespace."""
    return task.startswith(f"watcher for {plural}.") and task.endswith(f"@{namespace}")


def _running_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if not task.done()]


def kopf_settings() -> kopf.OperatorSettings:
    """kopf's settings: watch only labelled children, time out requests, post no events."""
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
