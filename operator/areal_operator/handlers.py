"""kopf's part: watches of experiments. Handlers only update the cache and queue keys."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import kopf

from areal_api.errors import describe
from areal_api.generate.crd import GROUP, PLURAL, VERSION
from areal_operator.cluster import read_credentials
from areal_operator.experiments import Experiments, object_key
from areal_operator.metrics import Metrics
from areal_operator.store import Key
from areal_operator.work_queue import WorkQueue

WATCH_START_TIMEOUT_S = 60.0
logger = logging.getLogger(__name__)


def make_registry(experiments: Experiments, queue: WorkQueue[Key], metrics: Metrics) -> Any:
    """kopf's registry with event handlers only: they write nothing to any object and need no finalizers."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return read_credentials()

    on_experiment = experiment_handler(experiments, queue, metrics)
    kopf.on.event(GROUP, VERSION, PLURAL, id="experiment", registry=registry)(on_experiment)
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
        self._expected = {(PLURAL, namespace) for namespace in (namespaces or (None,))}
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
    """kopf's settings: time out requests, post no events, copy no objects."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 10.0
    settings.watching.server_timeout = 270
    settings.execution.default_backoff = 5.0
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoStorage()
    return settings


class _NoStorage(kopf.DiffBaseStorage):
    """Remembers no last-handled state: handlers of events need none, and kopf would copy every object for it."""

    def build(self, *, body: kopf.Body, **_: Any) -> kopf.BodyEssence:
        """Nothing of the object."""
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing was stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""
