"""A deduplicating queue of keys with due times: one worker per key, repeated on changes, delayed after errors."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 300.0
COALESCE_S = 0.5  # delay of a key whose objects have changed: changes in the meantime need no further reconcile


class WorkQueue(Generic[K]):
    """``get`` hands a key to one worker, and to no other before that worker calls ``done``."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []  # entries that no longer agree with _due are skipped
        self._count = 0
        self._busy: dict[K, float] = {}  # since when
        self._errors: dict[K, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, after_s: float = 0.0) -> None:
        """Make ``key`` due after some seconds; an earlier due time stays."""
        due = time.monotonic() + after_s
        if key not in self._due or due < self._due[key]:
            self._due[key] = due
            if key not in self._busy:
                self._push(key)
                self._changed.set()

    def fail(self, key: K) -> float:
        """Make ``key`` due after a delay that doubles with every consecutive failure; returns the delay."""
        errors = self._errors.get(key, 0)
        self._errors[key] = errors + 1
        delay_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(errors, 32))
        self.add(key, delay_s)
        return delay_s

    def succeed(self, key: K) -> None:
        """Forget the failures of ``key``."""
        self._errors.pop(key, None)

    async def get(self) -> K:
        """The key that has been due for the longest time; waits until there is one."""
        while True:
            now = time.monotonic()
            wait_s = self._drop_outdated(now)
            if wait_s is not None and wait_s <= 0:
                _, _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._busy[key] = now
                return key
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The worker has finished with ``key``."""
        self._busy.pop(key, None)
        if key in self._due:
            self._push(key)
            self._changed.set()

    @property
    def depth(self) -> int:
        """Number of keys that are due."""
        now = time.monotonic()
        return sum(due <= now for due in self._due.values())

    def longest_busy_s(self) -> float:
        """For how long the oldest item in progress has been worked on."""
        return time.monotonic() - min(self._busy.values(), default=time.monotonic())

    def _push(self, key: K) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self._due[key], self._count, key))

    def _drop_outdated(self, now: float) -> float | None:
        """Remove outdated entries from the front; returns the seconds until the first valid one is due."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due and key not in self._busy:
                return due - now
            heapq.heappop(self._heap)
        return None
