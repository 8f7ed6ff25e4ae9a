"""Requests about queues: reads what an admission depends on, and reports to Kueue in the Workload's status."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from areal_api import resource_names
from areal_api.status import TERMINAL_PHASES
from areal_operator.cluster import ApiError, Cluster
from areal_operator.observed import ExperimentState, KueueObjects, Object, Observed, has_condition, is_active
from areal_operator.queueing import kueue
from areal_operator.queueing.placement import flavors_of
from areal_operator.queueing.positions import Positions
from areal_operator.queueing.report import Report, status_patch
from areal_operator.settings import Settings

CONFLICT, NOT_FOUND = 409, 404
MAX_READ = 256  # flavors and priority classes that are remembered
ATTEMPTS = 3  # to write a status that others write, too


class Queue:
    """What a reconcile needs from Kueue. ``refused`` says why a kind in a namespace cannot be read, if so."""

    def __init__(
        self, cluster: Cluster, settings: Settings, refused: Callable[[str, str], str | None], positions: Positions
    ) -> None:
        self._cluster = cluster
        self._positions = positions
        self._settings = settings
        self._refused = refused
        self._read: dict[tuple[str, str], tuple[float, Object | None]] = {}  # by kind and name: when, and what

    async def observe(self, state: ExperimentState, observed: Observed) -> Observed:
        """``observed`` with the flavors and the priority class of an experiment in a queue."""
        labels = state.experiment.metadata.labels
        key, queue = (state.namespace, state.name), labels.get(kueue.QUEUE_LABEL)
        if not self._settings.kueue or not queue or state.status.phase in TERMINAL_PHASES:
            self._positions.forget(key)
            return observed
        refused = self._refused(kueue.WORKLOAD, state.namespace)
        workload = observed.get(kueue.WORKLOAD, resource_names.workload(state.name))
        if refused is not None and workload is None:
            return replace(observed, kueue=KueueObjects(refused))
        flavors: dict[str, Object] = {}
        for name in sorted(set[str]().union(*map(flavors_of, observed.objects.get(kueue.WORKLOAD, ())))):
            flavor = await self._cached(kueue.FLAVOR, name)
            if flavor is not None:
                flavors[name] = flavor
        scale = state.experiment.spec.servers.autoscale
        priority = await self._value(kueue.PRIORITY_CLASS, labels.get(kueue.PRIORITY_LABEL))
        lower = None if scale is None else scale.priority_class_name
        borrowed = await self._value(kueue.POD_PRIORITY_CLASS, lower)
        position = None
        if workload is None or not has_condition(workload, kueue.QUOTA_RESERVED):
            position = self._positions.of(key, queue)
        else:
            self._positions.forget(key)
        return replace(observed, kueue=KueueObjects(refused, flavors, priority, borrowed, position))

    async def report(self, workload: Object, report: Report, *, pods: dict[str, str], now: datetime) -> Object | None:
        """Write a report; returns the Workload that results from it, None if nothing was written.

        ``pods``: labels of the pods that its quota is for. Raises ``ApiError`` if Kueue refuses it.
        """
        metadata = workload["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        named = {"kind": kueue.WORKLOAD, "metadata": {"namespace": namespace, "name": name}}
        for attempt in range(ATTEMPTS):
            patch = status_patch(workload, report, now)
            if patch is None or (report.hand_back and await self._has_pods(namespace, pods)):
                return None
            try:
                return {**await self._cluster.patch(named, patch, subresource="status"), "kind": kueue.WORKLOAD}
            except ApiError as error:
                if error.status == NOT_FOUND:
                    return None
                if error.status != CONFLICT or attempt == ATTEMPTS - 1:
                    raise
            fresh = await self._cluster.get(kueue.WORKLOAD, namespace, name)
            if fresh is None or fresh["metadata"]["uid"] != metadata["uid"]:
                return None
            workload = fresh
        return None

    async def _has_pods(self, namespace: str, labels: dict[str, str]) -> bool:
        """Whether pods with ``labels`` may run. Asks the API server: the watch of pods may be behind another one."""
        selector = resource_names.selector(labels)
        return any(is_active(pod) for pod in (await self._cluster.list("Pod", namespace, selector)).items)

    async def _value(self, kind: str, name: str | None) -> int | None:
        """The value of a priority class; None if it does not exist, or none is named."""
        found = None if name is None else await self._cached(kind, name)
        return None if found is None else int(found["value"])

    async def _cached(self, kind: str, name: str) -> Object | None:
        """A cluster-scoped object as it was at most ``waiting_s`` ago."""
        at, obj = self._read.get((kind, name), (float("-inf"), None))
        if time.monotonic() - at > self._settings.waiting_s:
            obj = await self._cluster.get(kind, None, name)
            if len(self._read) >= MAX_READ:
                self._read.clear()
            self._read[kind, name] = (time.monotonic(), obj)
        return obj
