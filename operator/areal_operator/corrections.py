"""Counts how often an object had to be restored, to recognise another controller that keeps changing it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from areal_api import conditions
from areal_operator.diagnosis import Reason
from areal_operator.observed import Object
from areal_operator.store import LAST_MANAGER, Key

MAX_CORRECTIONS = 5  # within WINDOW_S: more than a person's edits
WINDOW_S = 300.0
PAUSE_S = 30.0  # between corrections of a contested object

Child = tuple[Key, str, str]  # experiment, kind and name


class Corrections:
    """Corrections of the recent past, by object."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[Child, deque[float]] = {}
        self._managers: dict[Child, str | None] = {}

    def add(self, key: Key, obj: Object) -> None:
        """Record that the operator restored ``obj``."""
        child = (key, str(obj["kind"]), str(obj["metadata"]["name"]))
        self._times.setdefault(child, deque(maxlen=MAX_CORRECTIONS)).append(self._clock())
        self._managers[child] = obj.get(LAST_MANAGER)

    def must_wait(self, key: Key, obj: Object) -> bool:
        """Whether a contested object was restored just now: each side would only make the other write again."""
        times = self._recent((key, str(obj["kind"]), str(obj["metadata"]["name"])))
        return len(times) >= MAX_CORRECTIONS and self._clock() - times[-1] < PAUSE_S

    def contested(self, key: Key) -> Reason | None:
        """The object of an experiment that another controller keeps changing."""
        for child in [child for child in self._times if child[0] == key]:
            if len(self._recent(child)) >= MAX_CORRECTIONS:
                _, kind, name = child
                manager = self._managers[child]
                who = f"field manager {manager}" if manager else "another controller"
                text = f"{who} keeps changing {kind} {name}, and the operator keeps restoring it; exclude the object "
                text += f"from that controller ({MAX_CORRECTIONS} times within {WINDOW_S / 60:.0f} minutes)"
                return Reason(conditions.CHANGED_BY_OTHERS, text)
        return None

    def forget(self, key: Key) -> None:
        """Drop a deleted experiment."""
        for child in [child for child in self._times if child[0] == key]:
            del self._times[child], self._managers[child]

    def _recent(self, child: Child) -> deque[float]:
        times = self._times.get(child, deque())
        while times and self._clock() - times[0] > WINDOW_S:
            times.popleft()
        return times
