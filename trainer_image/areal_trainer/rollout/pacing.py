"""Keeps samples as fresh as possible: starts as few episodes ahead of the trainer as it can without making it wait.

The staleness gate bounds how many episodes may start; a ``Pacer`` chooses how many should. While the trainer trains on
batch v, the servers hold version v and generate batch v + 1, so with full overlap a sample is at least one version old.
Episodes beyond those two batches form a *reserve*, which replaces episodes that are still running when the trainer asks
for its batch. By Little's law the mean staleness is 1 + reserve / batch size: every step starts and consumes one batch,
and 1 + reserve / batch size batches are in the system. The reserve should therefore be no larger than the number of
episodes that are unfinished when the trainer asks.

That number is measured at every step. It depends on everything that matters: the distribution of generation times and
its tail, rejected episodes, the training time, the time to publish weights, and the servers' load. The reserve is its
recent mean plus a multiple of its standard deviation; the multiple is adjusted so that the trainer waits for about
``TARGET_WAIT`` of its time.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

TARGET_WAIT = 0.015  # fraction of the time that the trainer may wait for episodes
WINDOW = 16  # steps whose measurements count
MIN_MARGIN, MAX_MARGIN = -2.0, 4.0  # standard deviations
MARGIN_UP, MARGIN_DOWN = 1.0, 0.05


class Pacer:
    """Chooses the reserve from what it measures. Pure; the caller passes the time.

    B is ``batch_size``, η is ``max_staleness``. For η ≤ 1 there is nothing to choose.
    """

    def __init__(self, *, batch_size: int, max_staleness: int) -> None:
        self._batch_size = batch_size
        self._max_reserve = max(0, max_staleness - 1) * batch_size
        self._margin = 1.0
        self._unfinished: deque[int] = deque(maxlen=WINDOW)
        self._times: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # (waited, trained) of each step
        self._asked: tuple[float, int] | None = None  # time and running episodes when the trainer asked
        self._delivered_at: float | None = None
        self._reserve = 0

    @property
    def reserve(self) -> int:
        """Episodes to have started beyond the batch in training and the next one."""
        return self._reserve

    @property
    def training_s(self) -> float | None:
        """Mean time between a batch and the request for the next one."""
        return statistics.fmean(trained for _, trained in self._times) if self._times else None

    def limit(self, version: int) -> int:
        """Most episodes, accepted or running, that should have started while the servers hold ``version``."""
        return (version + 2) * self._batch_size + self._reserve

    def reset(self) -> None:
        """Forget a request in progress: the run resumes, and the first batch is always waited for."""
        self._asked = self._delivered_at = None

    def asked(self, now: float, *, running: int) -> None:
        """The trainer asks for a batch while ``running`` episodes are unfinished. Idempotent until ``delivered``."""
        if self._asked is None:
            self._asked = (now, running)

    def delivered(self, now: float, *, running: int) -> None:
        """The trainer gets its batch; ``running`` of the episodes that ran when it asked are still unfinished."""
        asked, self._asked = self._asked, None
        before, self._delivered_at = self._delivered_at, now
        if asked is None or before is None:
            return
        asked_at, unfinished = asked
        waited, trained = now - asked_at, asked_at - before
        self._times.append((waited, trained))
        # A wait this short is acceptable, so the episodes that finished during it need no replacement.
        self._unfinished.append(running if waited <= TARGET_WAIT * trained else unfinished)
        self._adjust()

    def _adjust(self) -> None:
        waited, trained = (sum(times) for times in zip(*self._times, strict=True))
        fraction = waited / (waited + trained) if waited + trained else 0.0
        last_waited, last_trained = self._times[-1]
        if last_waited > TARGET_WAIT * last_trained and fraction > TARGET_WAIT:
            self._margin = min(MAX_MARGIN, self._margin + MARGIN_UP)
        elif fraction < TARGET_WAIT:
            self._margin = max(MIN_MARGIN, self._margin - MARGIN_DOWN)
        expected = statistics.fmean(self._unfinished) + self._margin * statistics.pstdev(self._unfinished)
        self._reserve = min(self._max_reserve, max(0, math.ceil(expected)))
