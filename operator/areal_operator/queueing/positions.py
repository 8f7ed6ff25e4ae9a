"""Where runs stand in their queues, as Kueue's visibility API says.

All runs of a queue share one request, and only runs whose position has changed are reconciled again. The status shows
positions of the first ``TOLD`` runs of a queue only: otherwise every admission would change the status of all others.
"""

from __future__ import annotations

import logging

from areal_api import resource_names
from areal_api.errors import describe
from areal_operator.cluster import ApiError, Cluster
from areal_operator.queueing import kueue
from areal_operator.store import Key

logger = logging.getLogger(__name__)
TOLD = 20
_Queue = tuple[str, str]  # namespace and name of a LocalQueue


class Positions:
    """The positions of the runs that wait."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._waiting: dict[Key, tuple[str, int | None]] = {}  # queue, and the position that was told
        self._read: dict[_Queue, dict[str, int]] = {}  # by name of the Workload
        self._refused: str | None = None

    def of(self, key: Key, queue: str) -> int | None:
        """The position of a run in its queue as last read, starting from 1; None if it is unknown.

        From now on ``changed`` reports the run.
        """
        position = self._position(key, queue)
        self._waiting[key] = (queue, position)
        return position

    def forget(self, key: Key) -> None:
        """The run no longer waits."""
        self._waiting.pop(key, None)

    async def changed(self) -> list[Key]:
        """Read the queues of waiting runs; returns the runs whose position has changed."""
        queues = {(namespace, queue) for (namespace, _), (queue, _) in self._waiting.items()}
        self._read = {queue: await self._fetched(queue) for queue in sorted(queues)}
        return [key for key, (queue, told) in self._waiting.items() if self._position(key, queue) != told]

    def _position(self, key: Key, queue: str) -> int | None:
        return self._read.get((key[0], queue), {}).get(resource_names.workload(key[1]))

    async def _fetched(self, queue: _Queue) -> dict[str, int]:
        namespace, name = queue
        path = f"/apis/{kueue.VISIBILITY}/namespaces/{namespace}/localqueues/{name}/pendingworkloads"
        try:
            found = await self._cluster.request("GET", path, query={"limit": str(TOLD)})
        except ApiError as error:  # Kueue without this API, or a queue that does not exist
            if describe(error) != self._refused:
                logger.info("positions in queues are unknown: %s", describe(error))
            self._refused = describe(error)
            return {}
        items = found.get("items") or ()
        return {str(one["metadata"]["name"]): int(one["positionInLocalQueue"]) + 1 for one in items}
