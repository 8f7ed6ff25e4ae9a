"""When a changed status is written: transitions at once, what only tells how far a start has come at most every 5 s.

A start changes a dozen objects within a second, and each change could be another write of the same status.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from areal_api import conditions
from areal_api.status import ExperimentStatus
from areal_operator import transitions
from areal_operator.store import Key

# What is derived again from the observed objects at every reconcile. The stored values decide nothing, except for the
# UID of the Job: without it an operator that is restarted creates a Job again that was deleted within the interval.
DERIVED_FIELDS = frozenset(("conditions", "message", "servers", "agents", "job_uid"))
DERIVED_CONDITIONS = (
    *(conditions.STORAGE_READY, conditions.SERVERS_READY, conditions.TRAINER_RUNNING),
    conditions.AGENTS_READY,
)


class StatusPace:
    """The last writes of each experiment's status."""

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``interval_s``: least time between a write and another one that no transition requires."""
        self._interval_s = interval_s
        self._clock = clock
        self._written_at: dict[Key, float] = {}

    def wait_s(self, key: Key, before: ExperimentStatus, after: ExperimentStatus) -> float:
        """Seconds until ``after`` may be written in place of ``before``; 0 if they are the same."""
        if before == after or is_urgent(before, after):
            return 0.0
        return max(0.0, self._written_at.get(key, float("-inf")) + self._interval_s - self._clock())

    def written(self, key: Key) -> None:
        """A status of the experiment was written just now."""
        self._written_at[key] = self._clock()

    def forget(self, key: Key) -> None:
        """Drop a deleted experiment."""
        self._written_at.pop(key, None)


def is_urgent(before: ExperimentStatus, after: ExperimentStatus) -> bool:
    """Whether a change must be written before anything else happens: a decision depends on it, or an Event tells it."""
    names = [name for name in ExperimentStatus.model_fields if name not in DERIVED_FIELDS]
    if any(getattr(before, name) != getattr(after, name) for name in names):
        return True
    return _decisive(before) != _decisive(after) or bool(transitions.between(before, after))


def _decisive(status: ExperimentStatus) -> set[tuple[str, str, str]]:
    """Type, status and reason of the conditions that are not derived."""
    return {(one.type, one.status, one.reason) for one in status.conditions if one.type not in DERIVED_CONDITIONS}
