"""Keeps samples as fresh as possible: starts as few episodes ahead of the trainer as it can without making it wait.

The staleness gate bounds how many episodes may start; a ``Pacer`` chooses how many should, and when. While the trainer
trains on batch v, the servers hold version v and generate batch v + 1, so with full overlap a sample is at least one
version old. Episodes beyond those two batches form a *reserve*, which stands in for episodes that are still running
when the trainer asks for its batch. By Little's law the mean staleness is 1 + reserve / batch size: every step starts
and consumes one batch, and 1 + reserve / batch size batches are in the system.

How many: the smallest reserve with which the trainer waits for about ``TARGET_WAIT`` of its time. The pacer measures
the wait of every step and integrates its distance from the target, so everything that delays a batch is included: the
distribution of generation times and its tail, rejected episodes, the time to publish weights, and the servers' load.
Two things that a reserve cannot change are excluded. It is never larger than the number of episodes that can be
unfinished when the trainer asks, and waits for an episode that the staleness bound no longer lets pass are not
counted. A reserve must also make steps faster: ``reserve_gain`` compares. On saturated servers it does not; there even
new weights wait for a batch that the trainer already waits for, rather than interrupt it.

When: a reserve smaller than half a batch starts as other episodes end, or while the trainer waits. Its episodes then
do not slow down those that the trainer needs first. A larger one is needed where servers gain speed from more
concurrency, and starts at once.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

from areal_trainer.rollout.reserve_gain import ReserveCeiling

TARGET_WAIT = 0.01  # fraction of the time that the trainer may wait for episodes
WINDOW = 16  # steps whose measurements count
GAIN = 0.5  # batches of reserve for a wait as long as the training time
SURPRISE = 0.25  # a wait counts as no more, relative to the training time, unless there was such a wait before,
MEMORY = 64  # within this many steps: a single stall says nothing about the next steps
MAX_DEVIATIONS = 4.0  # standard deviations above the mean number of unfinished episodes that a reserve may cover
HELD = 2.0  # mean steps that new weights wait for a batch, at most
MAX_EXCESS = 0.5  # batches that the integral may exceed the largest reserve by: the longer until a smaller one is tried
STAGGERED = 0.5  # batches; a smaller reserve starts as other episodes end


class Pacer:
    """Chooses the reserve from what it measures. Pure; the caller passes the time.

    B is ``batch_size``, η is ``max_staleness``. For η ≤ 1 the reserve is 0.
    """

    def __init__(self, *, batch_size: int, max_staleness: int) -> None:
        self._batch_size = batch_size
        self._max_reserve = max(0, max_staleness - 1) * batch_size
        self._unfinished: deque[int] = deque(maxlen=WINDOW)
        self._trained: deque[float] = deque(maxlen=WINDOW)  # seconds
        self._steps: deque[float] = deque(maxlen=WINDOW)  # seconds between two batches
        self._asked: tuple[float, int] | None = None  # time and running episodes when the trainer asked
        self._enough_at: float | None = None  # when as many episodes as it asked for were finished
        self._delivered_at: float | None = None
        self._waits: deque[float] = deque(maxlen=MEMORY)  # relative to the training time
        self._integral = 0.0  # of the wait, in episodes
        self._wanted = 0  # reserve that the wait suggests
        self._ceiling = ReserveCeiling(batch_size=batch_size, max_reserve=self._max_reserve)

    @property
    def wanted(self) -> int:
        """The reserve that the measured waits suggest, whether or not it makes steps faster."""
        return self._wanted

    @property
    def reserve(self) -> int:
        """Episodes to have started beyond the batch in training and the next one."""
        return min(self._wanted, self._ceiling.reserve)

    def hold_s(self, now: float) -> float:
        """Longest time that new weights should wait for the batch that the trainer asks for; 0 to publish at once."""
        if not self._ceiling.holds_weights or self._delivered_at is None:
            return 0.0
        step_s = statistics.fmean(self._steps) if self._steps else now - self._delivered_at
        return HELD * step_s

    @property
    def training_s(self) -> float | None:
        """Mean time between a batch and the request for the next one."""
        return statistics.fmean(self._trained) if self._trained else None

    def limit(self, version: int) -> int:
        """Most episodes, accepted or running, that should have started while the servers hold ``version``."""
        return (version + 2) * self._batch_size + self.reserve

    def startable(self, *, finished: int, running: int) -> int | None:
        """Most of the episodes within ``limit`` that should start now; None for all of them.

        ``finished`` episodes wait for the trainer, and ``running`` ones are unfinished.
        """
        if self._asked is not None or self.reserve >= STAGGERED * self._batch_size:
            return None
        for_next_batch = self._batch_size - finished
        for_reserve = self._batch_size - self.reserve
        return max(for_next_batch, for_reserve) - running

    def reset(self) -> None:
        """Forget a request in progress: the run resumes, and the first batch is always waited for."""
        self._asked = self._enough_at = self._delivered_at = None
        self._ceiling.reset()

    def asked(self, now: float, *, running: int) -> None:
        """The trainer asks for a batch while ``running`` episodes are unfinished. Idempotent until ``delivered``."""
        if self._asked is None:
            self._asked = (now, running)

    def enough(self, now: float) -> None:
        """A batch's number of episodes is finished; the staleness bound may still need another one to go first."""
        if self._enough_at is None:
            self._enough_at = now

    def delivered(self, now: float, *, running: int) -> None:
        """The trainer gets its batch; ``running`` of the episodes that ran when it asked are still unfinished."""
        asked, self._asked = self._asked, None
        enough_at, self._enough_at = self._enough_at, None
        before, self._delivered_at = self._delivered_at, now
        if asked is None or before is None or asked[0] <= before:
            return
        asked_at, unfinished = asked
        waited, trained = max(0.0, (now if enough_at is None else enough_at) - asked_at), asked_at - before
        self._trained.append(trained)
        self._steps.append(now - before)
        # A wait this short is acceptable, so the episodes that finished during it need no replacement.
        self._unfinished.append(running if waited <= TARGET_WAIT * trained else unfinished)
        training_s = statistics.fmean(self._trained)
        self._adjust(waited / training_s)
        self._ceiling.delivered(now, late=self._integral > 0, wanted=self._wanted, training_s=training_s)

    def _adjust(self, wait: float) -> None:
        """Integrate a wait, which is relative to the training time."""
        useful = statistics.fmean(self._unfinished) + MAX_DEVIATIONS * statistics.pstdev(self._unfinished)
        largest, excess = min(self._max_reserve, math.ceil(useful)), MAX_EXCESS * self._batch_size
        if self._ceiling.holds_weights:  # without a reserve, the wait does not tell how large one should be
            largest, excess = min(largest, self._ceiling.least), 0.0
        counted = min(wait, 1.0, max(SURPRISE, *self._waits, 0.0))
        self._waits.append(wait)
        integral = self._integral + GAIN * self._batch_size * (counted - TARGET_WAIT)
        self._integral = min(max(1.0, largest + excess), max(0.0, integral))
        self._wanted = min(largest, math.ceil(self._integral))
