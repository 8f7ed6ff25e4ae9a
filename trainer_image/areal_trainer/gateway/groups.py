"""Groups of ended sessions for the trainer, in online mode: as many sessions of one task as the trainer asks for.

Agents choose their tasks, or ask for one: a row of the data that the trainer wants a group of.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.sessions import Counters, Session

MAX_WAITING = 4096  # complete groups, and tasks of incomplete ones; the oldest is dropped beyond it
MAX_ATTEMPTS = 4  # sessions that are started on a row, in multiples of those that it needs


@dataclass(eq=False)
class Task:
    """The trainer's request for one group, with the row of data that agents get if they ask for a task."""

    id: str
    size: int
    oldest_version: int
    row: dict[str, Any] | None
    group: asyncio.Future[list[Session]]
    sessions: list[Session] = field(default_factory=list)  # on the row: open, or ended with a reward
    started: int = 0  # sessions on the row, including those that failed


class Groups:
    """Collects ended sessions by task, and hands complete groups to the trainer's requests, both in their order."""

    def __init__(self, counters: Counters, *, is_open: Callable[[Session], bool]) -> None:
        """``is_open`` tells whether a session has neither ended nor expired."""
        self._counters = counters
        self._is_open = is_open
        self._incomplete: dict[str, list[Session]] = {}
        self._complete: deque[list[Session]] = deque()
        self._tasks: dict[str, Task] = {}  # that wait for their group, in the order of their requests
        self._offered = asyncio.Event()  # set when a row may have become free
        self._size = 1

    def add(self, session: Session) -> None:
        """Add a session that ended with a reward; others cannot be trained on and are left out."""
        task = self._tasks.get(session.task_id)
        if task is not None and session in task.sessions:
            self._add_to_row(task)
            return
        if not _has_reward(session):
            return
        group = self._incomplete.setdefault(session.task_id, [])
        group.append(session)
        self._collect(session.task_id)
        if len(self._incomplete) > MAX_WAITING:
            self._counters.stale += len(self._incomplete.pop(next(iter(self._incomplete))))

    async def take(self, task_id: str, size: int, *, oldest_version: int, row: dict[str, Any] | None) -> list[Session]:
        """The next ``size`` sessions of one task, all of whose tokens are of ``oldest_version`` or newer.

        Older ones are dropped: later requests want newer versions. While it waits, ``row`` is handed to agents that ask
        for a task. Raises ``GatewayError`` if too many sessions on the row fail.
        """
        self._size = size
        for incomplete in list(self._incomplete):
            self._collect(incomplete)
        while self._complete:
            group = self._complete.popleft()
            if _version(group) >= oldest_version:
                return group
            self._counters.stale += len(group)
        task = Task(task_id, size, oldest_version, row, asyncio.get_running_loop().create_future())
        self._tasks[task_id] = task
        self._offered.set()
        try:
            return await task.group
        finally:
            del self._tasks[task_id]

    async def start_on_row(self, start: Callable[[str], Session], *, wait_s: float) -> tuple[Session, dict[str, Any]]:
        """A session that ``start`` opens for the ID of a task, and the task's row.

        Raises ``TimeoutError`` if the trainer wants no more sessions on any row within ``wait_s``.
        """
        async with asyncio.timeout(wait_s):
            while (task := self._next_task()) is None:
                self._offered.clear()
                await self._offered.wait()
        assert task.row is not None
        session = start(task.id)
        task.sessions.append(session)
        task.started += 1
        return session, task.row

    def _next_task(self) -> Task | None:
        for task in self._tasks.values():
            if task.row is None or task.group.done():
                continue
            task.sessions = [one for one in task.sessions if self._is_open(one) or _has_reward(one)]
            if len(task.sessions) >= task.size:
                continue
            if task.started < MAX_ATTEMPTS * task.size:
                return task
            _fail(task)
        return None

    def _add_to_row(self, task: Task) -> None:
        """A session on a task's row has ended: the row may be complete, or free for another session."""
        rewarded = [one for one in task.sessions if not self._is_open(one) and _has_reward(one)]
        if len(rewarded) < task.size:
            self._offered.set()
        elif _version(rewarded) >= task.oldest_version:
            if not task.group.done():
                task.group.set_result(rewarded)
        else:
            self._counters.stale += len(rewarded)
            task.sessions.clear()
            self._offered.set()

    def _collect(self, task_id: str) -> None:
        group = self._incomplete[task_id]
        while len(group) >= self._size:
            self._deliver(group[: self._size])
            del group[: self._size]
        if not group:
            del self._incomplete[task_id]

    def _deliver(self, group: list[Session]) -> None:
        """Give a group of the agents' own task to the first request, if possible to one whose row nobody works on."""
        waiting = [task for task in self._tasks.values() if not task.group.done()]
        if not waiting:
            self._complete.append(group)
            if len(self._complete) > MAX_WAITING:
                self._counters.stale += len(self._complete.popleft())
            return
        task = next((one for one in waiting if not one.sessions), waiting[0])
        if _version(group) >= task.oldest_version:
            task.group.set_result(group)
        else:
            self._counters.stale += len(group)


def _fail(task: Task) -> None:
    text = (
        f"{task.started} sessions were started on a row that needs {task.size}, and the others ended without a reward "
    )
    text += "or expired"
    task.group.set_exception(GatewayError(422, text))


def _has_reward(session: Session) -> bool:
    return any(one.reward is not None for one in session.tree.interactions)


def _version(group: list[Session]) -> int:
    """The oldest weight version of the group's tokens."""
    return min(min(one.sample.versions, default=0) for session in group for one in session.tree.interactions)
