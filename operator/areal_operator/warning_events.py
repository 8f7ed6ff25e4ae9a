"""Warning events of the namespaces whose experiments wait for something that has no other explanation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection

from areal_api.errors import describe
from areal_operator.cluster import ApiError, Cluster, is_transient
from areal_operator.observed import WarningEvent
from areal_operator.store import Key

logger = logging.getLogger(__name__)
MAX_WARNINGS = 10_000  # per namespace, the newest ones
_ByUid = dict[str, list[WarningEvent]]


class NamespaceWarnings:
    """Warnings by namespace. Experiments that wait at the same time share one request."""

    def __init__(self, cluster: Cluster, *, max_age_s: float) -> None:
        self._cluster = cluster
        self._max_age_s = max_age_s
        self._fetched: dict[str, tuple[float, _ByUid]] = {}
        self._reading: dict[str, asyncio.Lock] = {}  # one request per namespace at a time
        self._waiting: dict[Key, tuple[frozenset[str], list[WarningEvent]]] = {}  # UIDs, and the warnings about them

    async def about(self, key: Key, uids: Collection[str]) -> list[WarningEvent]:
        """Warnings about objects of an experiment, of each object the newest last.

        From now on ``changed`` reports the experiment.
        """
        async with self._reading.setdefault(key[0], asyncio.Lock()):
            fetched_at, _ = self._fetched.get(key[0], (float("-inf"), {}))
            if time.monotonic() - fetched_at > self._max_age_s:
                await self._fetch(key[0])
        wanted = frozenset(uids)
        about = self._about(key, wanted)
        self._waiting[key] = (wanted, about)
        return about

    def forget(self, key: Key) -> None:
        """The experiment no longer waits without an explanation."""
        self._waiting.pop(key, None)

    async def changed(self) -> list[Key]:
        """Read the namespaces of waiting experiments again; returns the experiments whose warnings have changed."""
        namespaces = {namespace for namespace, _ in self._waiting}
        for namespace in self._fetched.keys() - namespaces:
            del self._fetched[namespace]
            self._reading.pop(namespace, None)
        for namespace in namespaces:
            await self._fetch(namespace)
        return [key for key, (uids, before) in self._waiting.items() if self._about(key, uids) != before]

    def _about(self, key: Key, uids: frozenset[str]) -> list[WarningEvent]:
        _, warnings = self._fetched.get(key[0], (0.0, {}))
        return [warning for uid in sorted(uids) for warning in warnings.get(uid, ())]

    async def _fetch(self, namespace: str) -> None:
        _, warnings = self._fetched.get(namespace, (0.0, {}))
        try:
            listed = await self._cluster.warning_events(namespace)
        except ApiError as error:
            if is_transient(error):
                raise
            logger.warning("%s: warning events cannot be read: %s", namespace, describe(error))
        else:
            warnings = {}
            for warning in listed[-MAX_WARNINGS:]:
                warnings.setdefault(warning.uid, []).append(warning)
        self._fetched[namespace] = (time.monotonic(), warnings)
