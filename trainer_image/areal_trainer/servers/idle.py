"""How much of its time a server had nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable


class IdleTime:
    """The time that one server could have worked, and the part of it without any request. Times are seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._serving_s = self._idle_s = 0.0

    def advance(self, *, serving: bool, busy: bool) -> None:
        """Count the time since the last call. Call it before either changes.

        ``serving``: the server held the current weights, or was receiving new ones. ``busy``: it had a request.
        """
        now = self._clock()
        if serving:
            self._serving_s += now - self._at
            self._idle_s += 0.0 if busy else now - self._at
        self._at = now

    def take(self) -> tuple[float, float]:
        """Seconds of serving, and of these without a request, since the last call."""
        result = self._serving_s, self._idle_s
        self._serving_s = self._idle_s = 0.0
        return result
