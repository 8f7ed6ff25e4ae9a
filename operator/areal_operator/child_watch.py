"""Lists and watches of children: one task per kind and namespace keeps the store up to date.

Each task lists, watches until the server ends the watch, and lists again, which finds whatever the watch has missed.
kopf watches the experiments. Its event pipeline takes a copy, a task and a record per object, which is too much for
the ten children of every experiment.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from areal_api import resource_names
from areal_api.errors import describe
from areal_operator.cluster import KINDS, ApiError, Cluster, is_transient
from areal_operator.metrics import Metrics
from areal_operator.observed import Object
from areal_operator.store import Key, Store

logger = logging.getLogger(__name__)
SELECTOR = f"{resource_names.MANAGED_BY}={resource_names.OPERATOR}"
RETRY_S = 2.0  # after an error, and at least between two listings


class ChildWatch:
    """Keeps one kind of children in one namespace, or in all, up to date."""

    def __init__(
        self,
        cluster: Cluster,
        kind: str,
        namespace: str | None,
        *,
        store: Store,
        changed: Callable[[Key], None],
        metrics: Metrics,
        relist_s: float,
        optional: bool = False,
    ) -> None:
        """``optional``: a cluster may lack the kind, which is no reason for a warning."""
        self._cluster = cluster
        self._kind = kind
        self._namespace = namespace
        self._store = store
        self._changed = changed
        self._metrics = metrics
        self._relist_s = relist_s
        self._refusal_level = logging.INFO if optional else logging.WARNING
        self.listed = asyncio.Event()  # listed once, or refused
        self._refused: str | None = None

    @property
    def refused(self) -> str | None:
        """Why the API server refuses to list; None while it does not."""
        return self._refused

    def reads(self, kind: str, namespace: str) -> bool:
        """Whether this watch covers a kind in a namespace."""
        return self._kind == kind and self._namespace in (None, namespace)

    async def run(self) -> None:
        """List and watch until cancelled."""
        refusals = 0
        while True:
            began = time.monotonic()
            try:
                version = await self.relist()
                refusals = 0
                await self.follow(version)
            except Exception as error:
                if not isinstance(error, ApiError) and not is_transient(error):
                    raise
                if isinstance(error, ApiError) and error.status in (403, 404):
                    self._refuse(describe(error))
                    await asyncio.sleep(min(self._relist_s, RETRY_S * 2.0 ** min(refusals, 32)))
                    refusals += 1  # an API server that has just started may refuse what it allows a second later
                elif not is_transient(error):  # 410: the version is too old
                    logger.info("the watch of %s starts again: %s", self._kind, describe(error))
            await asyncio.sleep(max(0.0, RETRY_S - (time.monotonic() - began)))

    async def relist(self) -> int:
        """Replace the cached children by a listing; returns its version."""
        uids: set[str] = set()
        async for page in self._cluster.pages(self._kind, self._namespace, SELECTOR):
            for obj in page.items:
                uids.add(obj["metadata"]["uid"])
                self._apply("LISTED", obj)
        for key in self._store.prune(self._kind, uids, page.version, self._namespace):
            self._changed(key)
        if self._refused is not None:
            logger.info("%s can be read again", self._where)
        self._refused = None
        self.listed.set()
        return page.version

    async def follow(self, version: int) -> None:
        """Apply the changes since ``version``, until the server ends the watch."""
        timeout_s = self._relist_s * random.uniform(0.9, 1.1)  # so that not all kinds are listed at the same time
        changes = self._cluster.watch(self._kind, self._namespace, SELECTOR, version, timeout_s=timeout_s)
        async for change, obj in changes:
            self._metrics.last_event_at = time.monotonic()
            try:
                self._apply(change, obj)
            except Exception as error:  # noqa: BLE001 - whatever one object contains, the others are still watched
                metadata = obj.get("metadata") or {}
                where = f"{metadata.get('namespace')}/{metadata.get('name')}"
                logger.error("%s: the watch event cannot be processed: %s", where, describe(error))

    def _apply(self, change: str, obj: Object) -> None:
        key = self._store.remove(obj) if change == "DELETED" else self._store.put(obj)
        if key is not None:
            self._changed(key)

    @property
    def _where(self) -> str:
        return f"{KINDS[self._kind][1]} of " + ("the cluster" if self._namespace is None else self._namespace)

    def _refuse(self, why: str) -> None:
        if self._refused != why:
            logger.log(self._refusal_level, "%s cannot be read: %s", self._where, why)
        self._refused = why
        self.listed.set()
