"""Keys that are to be worked on: each at most once at a time, again where news came meanwhile, later after an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 300.0


class WorkQueue(Generic[K]):
    """A deduplicating queue with times. ``get`` gives a key to one worker until ``done`` is called."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._busy: dict[K, float] = {}  # since when
        self._errors: dict[K, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, after_s: float = 0.0) -> None:
        """Work on ``key`` after so many seconds, or earlier where that is asked already."""
        due = time.monotonic() + after_s
        if key not in self._due or due < self._due[key]:
            self._due[key] = due
            self._changed.set()

    def fail(self, key: K) -> float:
        """Work on ``key`` again after a time that doubles with each failure in a row; returns that time."""
        errors = self._errors.get(key, 0)
        self._errors[key] = errors + 1
        delay_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0**errors)
        self.add(key, delay_s)
        return delay_s

    def succeed(self, key: K) -> None:
        """Forget the failures of ``key``."""
        self._errors.pop(key, None)

    async def get(self) -> K:
        """The key that has been due for the longest time; waits for one."""
        while True:
            now = time.monotonic()
            free = [(due, key) for key, due in self._due.items() if key not in self._busy]
            due, key = min(free, key=lambda entry: entry[0], default=(None, None))
            if key is not None and due is not None and due <= now:
                del self._due[key]
                self._busy[key] = now
                return key
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), None if due is None else due - now)
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The worker is through with ``key``."""
        self._busy.pop(key, None)
        self._changed.set()

    @property
    def depth(self) -> int:
        """Keys that are due now."""
        now = time.monotonic()
        return sum(due <= now for due in self._due.values())

    def longest_busy_s(self) -> float:
        """How long the longest of the works in progress has taken."""
        return time.monotonic() - min(self._busy.values(), default=time.monotonic())
