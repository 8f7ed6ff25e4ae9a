"""Whether more work ahead makes training faster: compares the speed of steps with two amounts of it.

Where the servers have spare capacity, episodes that run ahead are generated in addition to those that the trainer waits
for. Where they are saturated, episodes ahead slow the others down, and samples become older for nothing. Nothing that a
client observes with one amount tells the two apart, so ``ReserveCeiling`` tries both.

The smallest amount is ``HOLD``: new weights wait until the next batch is complete, if the trainer already waits for it.
New weights interrupt the episodes that run, whose prefixes are then computed again, and let the batch after the next
start, which shares the servers with the rest of the next one. On saturated servers both only delay the trainer.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque

HOLD = -1  # a level below a reserve of 0: the weights wait for the next batch
FREE = 1 / 4  # batches; a reserve up to this one needs no test against smaller ones
SETTLE = 2  # steps after a change of the reserve that are not measured
MEASURED = 12  # steps, several times as many as a burst has
EARLY = 8  # steps after which a clear result is enough
NEEDED = 0.2  # part of the largest possible gain in speed, below which a reserve is not worth its staleness
LEAST = 0.01  # gain in speed
UNCERTAIN = 0.5  # part of the largest possible gain; with a larger standard error any measured gain is enough
CLEAR = 2.0  # standard errors between the gain and what is needed, for a clear result
LAGS = 4  # steps whose correlation counts for the error
SMALL_SAMPLE = 2.0  # so much larger is the true variance of so few independent steps
FIRST_PAUSE, LAST_PAUSE = 64, 256  # steps between two comparisons; every pause is twice the one before


class ReserveCeiling:
    """The largest reserve, in episodes, that has been seen to be useful. Pure; the caller passes the time."""

    def __init__(self, *, batch_size: int, max_reserve: int) -> None:
        self._batch_size = batch_size
        self._max_reserve = max_reserve
        self.least = min(max_reserve, math.ceil(FREE * batch_size))
        self._level = HOLD
        self._trial: int | None = None  # the reserve that is compared with the level
        self._base = (0.0, 0.0)  # pace at the level, during a trial
        self._times: deque[float] = deque(maxlen=MEASURED + 1)  # of deliveries with the present reserve
        self._settling = SETTLE
        self._pause = 0
        self._next_pause = FIRST_PAUSE
        self._without_hold = 0  # steps in which HOLD is not tried
        self._upwards = True  # whether the next comparison is with a larger reserve

    @property
    def reserve(self) -> int:
        """Most episodes of reserve that should be used now."""
        return max(0, self._now)

    @property
    def holds_weights(self) -> bool:
        """Whether new weights should wait until the next batch is complete."""
        return self._now == HOLD

    @property
    def _now(self) -> int:
        return self._level if self._trial is None else self._trial

    def reset(self) -> None:
        """Forget measurements in progress: the run resumes."""
        self._trial = None
        self._restart()

    def delivered(self, now: float, *, late: bool, wanted: int, training_s: float) -> None:
        """A batch is delivered. ``late``: the trainer waits for its batches; ``wanted``: the reserve this suggests."""
        self._pause, self._without_hold = max(0, self._pause - 1), max(0, self._without_hold - 1)
        if self._trial is None and not (late and self._may_change(wanted)):
            self._restart()
            return
        if self._settling > 0:
            self._settling -= 1
            return
        self._times.append(now)
        enough = EARLY if self._trial is not None or self._level == HOLD else MEASURED
        if len(self._times) > enough and self._pause == 0:
            self._compare(pace(list(self._times)), training_s)

    def _may_change(self, wanted: int) -> bool:
        """Whether another level could make a difference."""
        if self._level == self._max_reserve == self.least:
            return self._without_hold == 0
        return self._level == HOLD or wanted >= min(self._level + 1, self._max_reserve)

    def _compare(self, measured: tuple[float, float], training_s: float) -> None:
        if self._trial is None:
            self._base = measured
            self._trial = self._alternative()
            self._restart()
            return
        low, high = sorted((self._level, self._trial))
        of_low, of_high = (self._base, measured) if low == self._level else (measured, self._base)
        possible = possible_gain(low, high, self._batch_size, of_low[0], training_s)
        part = 0.0 if low == HOLD else NEEDED * possible  # samples are hardly older than with HOLD
        useful = is_useful(of_low, of_high, part=part, possible=possible, final=len(self._times) > MEASURED)
        if useful is None:
            return
        if useful and low == HOLD:
            self._without_hold = LAST_PAUSE
        grew = useful and self._trial == high
        self._level, self._trial = high if useful else low, None
        if not grew or self._level == self._max_reserve:
            self._upwards = not self._upwards
            self._pause, self._next_pause = self._next_pause, min(LAST_PAUSE, 2 * self._next_pause)
        self._restart()

    def _alternative(self) -> int:
        """A level to compare with: one batch more, or, to approach the smallest useful one, half of it."""
        if self._level == HOLD:
            return self.least
        upwards = self._upwards or (self._level == self.least and self._without_hold > 0)
        if upwards and self._level < self._max_reserve:
            return min(self._max_reserve, self._level + self._batch_size)
        return HOLD if self._level == self.least else (self.least + self._level) // 2

    def _restart(self) -> None:
        self._times.clear()
        self._settling = SETTLE


def pace(times: list[float]) -> tuple[float, float]:
    """Seconds per step, and their standard error, from the times of consecutive deliveries.

    The slope of a straight line, because batches that end together are delivered in bursts, which shift the first and
    the last time. The error is that of a mean of autocorrelated values (Newey and West 1987), so bursts, in which long
    and short steps alternate, do not count as noise.
    """
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = statistics.fmean(steps)
    deviations = [step - mean for step in steps]
    products = [
        sum(a * b for a, b in zip(deviations, deviations[lag:], strict=False)) / len(steps) for lag in range(LAGS)
    ]
    variance = products[0] + 2 * sum((1 - lag / LAGS) * product for lag, product in enumerate(products) if lag)
    slope = statistics.linear_regression(range(len(times)), times).slope
    return slope, math.sqrt(SMALL_SAMPLE * max(0.0, variance) / len(steps))


def possible_gain(low: int, high: int, batch_size: int, step_s: float, training_s: float) -> float:
    """Largest gain, as the logarithm of a ratio of speeds, by a reserve of ``high`` instead of ``low`` episodes.

    ``step_s``: seconds per step with ``low``. No step is shorter than its training, and by Little's law the speed is at
    most proportional to the episodes in flight, two batches and the reserve; one batch with ``HOLD``.
    """
    in_flight = (2 * batch_size + high) / (batch_size if low == HOLD else 2 * batch_size + low)
    return max(0.0, math.log(min(in_flight, step_s / training_s)))


def is_useful(
    low: tuple[float, float], high: tuple[float, float], *, part: float, possible: float, final: bool
) -> bool | None:
    """Whether the larger reserve is worth its staleness, from the ``pace`` with both.

    ``part``: the gain that makes it so, if above ``LEAST``; ``possible``: as from ``possible_gain``. None while the
    result is unclear and not ``final``.
    """
    gain, error = math.log(low[0] / high[0]), math.hypot(low[1] / low[0], high[1] / high[0])
    needed = max(LEAST, part)
    if not final and abs(gain - needed) <= CLEAR * error + part:
        return None
    return gain >= needed or (gain > 0 and error > UNCERTAIN * possible)
