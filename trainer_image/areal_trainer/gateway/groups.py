"""Groups of ended sessions for the trainer, in online mode: as many sessions of one task as the trainer asks for."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from areal_trainer.gateway.sessions import Counters, Session

MAX_WAITING = 4096  # complete groups, and tasks of incomplete ones; the oldest is dropped beyond it


@dataclass(eq=False)
class _Waiter:
    oldest_version: int
    group: asyncio.Future[list[Session]]


class Groups:
    """Collects ended sessions by task, and hands complete groups to the trainer's requests, both in their order."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._incomplete: dict[str, list[Session]] = {}
        self._complete: deque[list[Session]] = deque()
        self._waiters: deque[_Waiter] = deque()
        self._size = 1

    def add(self, session: Session) -> None:
        """Add a session that ended with a reward; others cannot be trained on and are left out."""
        if not any(one.reward is not None for one in session.tree.interactions):
            return
        group = self._incomplete.setdefault(session.task_id, [])
        group.append(session)
        self._collect(session.task_id)
        if len(self._incomplete) > MAX_WAITING:
            self._counters.stale += len(self._incomplete.pop(next(iter(self._incomplete))))

    async def take(self, size: int, *, oldest_version: int) -> list[Session]:
        """The next ``size`` sessions of one task, all of whose tokens are of ``oldest_version`` or newer.

        Older ones are dropped: later requests want newer versions.
        """
        self._size = size
        for task_id in list(self._incomplete):
            self._collect(task_id)
        while self._complete:
            group = self._complete.popleft()
            if _version(group) >= oldest_version:
                return group
            self._counters.stale += len(group)
        waiter = _Waiter(oldest_version, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            return await waiter.group
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _collect(self, task_id: str) -> None:
        group = self._incomplete[task_id]
        while len(group) >= self._size:
            self._deliver(group[: self._size])
            del group[: self._size]
        if not group:
            del self._incomplete[task_id]

    def _deliver(self, group: list[Session]) -> None:
        if not self._waiters:
            self._complete.append(group)
            if len(self._complete) > MAX_WAITING:
                self._counters.stale += len(self._complete.popleft())
        elif _version(group) >= self._waiters[0].oldest_version:
            self._waiters.popleft().group.set_result(group)
        else:
            self._counters.stale += len(group)


def _version(group: list[Session]) -> int:
    """The oldest weight version of the group's tokens."""
    return min(min(one.sample.versions, default=0) for session in group for one in session.tree.interactions)
