"""How many servers a run should have, from how long its trainer and its servers wait. Pure.

The trainer trains on one batch while the servers generate the next ones. Let T be the training time of a step and w the
share of the step that the trainer waits, so a step takes T / (1 - w). If the servers' throughput is what the trainer
waits for, n / (1 - w) servers end the wait. More servers change nothing if it waits for something else, for example for
the longest episode or for weights: after every increase the gain is compared with this model, and an increase that
brought little is undone. If the trainer hardly ever waits, fewer servers may do: as many as the time without any
request suggests, or else a few less as a trial. A trial that makes the trainer wait is undone as well.

Whatever was undone is tried again only after a pause, which doubles each time. The number of changes of a run whose
load does not change is therefore logarithmic in its number of steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

TOO_LONG = 0.03  # share of a step that the trainer may wait; above it, more servers are tried
HARDLY = 0.015  # below it, fewer servers are tried
IDLE = 0.2  # share of the servers' time without requests that says how many are too many
SPARE = 0.1  # servers beyond those that had requests, relative to them
TRIAL = 0.2  # part of the servers that a trial does without
LEAST_FACTOR = 1.25  # of an increase, so that its gain can be told from chance
NEEDED = 0.25  # part of the gain in speed of the model, below which an increase is undone
MOST_FACTOR = 2.0  # of an increase
MOST_LESS = 1.5  # of a decrease
SETTLE = 4  # steps after a change that are not measured
EARLY, MEASURED, SUSTAINED = 4, 12, 24  # steps for a clear wait, for a wait, and for a decrease
CLEAR = 2.0  # standard errors between a wait and twice TOO_LONG that make it clear
PACE_S = 60.0  # seconds between two changes, by default
FIRST_PAUSE = 128  # steps until what was undone is tried again; each pause is twice the one before
GROWN = 1.5  # a wait so much longer than when an increase was undone does not wait for the end of the pause,
FALLEN = 0.15  # nor an idle share so much above the one before a decrease that was undone
NO_ROOM = 5.0  # so many times longer servers may be unschedulable before they are given back
RETRY = 15.0  # so many times longer it takes until servers that were given back are requested again
MAX_CHANGES = 64  # that are remembered

Increased = Literal["TrainerWaits", "TrainerWaitsAgain"]
Decreased = Literal["ServersIdle", "FewerTried"]
GivenBack = Literal["NoGain", "NoRoom", "NotNeeded", "OutOfBounds"]
Cause = Increased | Decreased | GivenBack
INCREASES: tuple[Cause, ...] = get_args(Increased)
DECREASES: tuple[Cause, ...] = get_args(Decreased)
CAUSES: dict[str, Cause] = {cause: cause for cause in (*INCREASES, *DECREASES, *get_args(GivenBack))}


@dataclass(frozen=True)
class Sample:
    """What the trainer reported after a step in which all requested servers took part."""

    wait: float  # share of the step that it waited for rollouts
    idle: float  # share of the servers' time without any request


@dataclass(frozen=True)
class Change:
    """A change of the number of servers. ``at_s`` is a time, ``step`` the last step before it."""

    at_s: float
    step: int
    before: int
    after: int
    cause: Cause
    wait: float = 0.0  # before the change, and so is the idle share
    idle: float = 0.0


@dataclass(frozen=True)
class History:
    """What is known about the present attempt of a run."""

    since_s: float  # its begin
    step: int = 0  # the last one that was reported
    samples: tuple[Sample, ...] = ()  # since the last change: the first and the last ones, in order
    settling: int = SETTLE  # steps that are not measured yet
    changes: tuple[Change, ...] = ()
    servers: int = 0  # that were measured; 0 before the first report

    def reported(self, step: int, sample: Sample | None, *, servers: int) -> History:
        """With the report of a step. ``sample``: None if some of ``servers`` were missing: it is not comparable.

        A lower step than before means that the policy was rolled back: what was measured is forgotten. So are the
        samples of another number of servers, which a queue may have admitted or evicted.
        """
        if step < self.step:
            return History(self.since_s, step, servers=servers)
        if servers != self.servers:
            other = replace(self, samples=(), settling=SETTLE, servers=servers)
            return other.reported(step, sample, servers=servers)
        if step == self.step or sample is None:
            return replace(self, step=step)
        if self.settling:
            return replace(self, step=step, settling=self.settling - 1)
        first, later = self.samples[:MEASURED], self.samples[MEASURED:]
        return replace(self, step=step, samples=(*first, *(*later, sample)[-SUSTAINED:]))

    def changed(self, choice: Choice, *, before: int, at_s: float) -> History:
        """After ``choice`` was made: measuring begins again."""
        measured = self.wait(MEASURED), self.idle(MEASURED)
        change = Change(at_s, self.step, before, choice.servers, choice.cause, *measured)
        return replace(self, samples=(), settling=SETTLE, changes=(*self.changes, change)[-MAX_CHANGES:])

    def wait(self, count: int) -> float:
        """The mean wait of the last ``count`` samples."""
        return statistics.fmean(sample.wait for sample in self.samples[-count:]) if self.samples else 0.0

    def idle(self, count: int) -> float:
        """The mean idle share of the last ``count`` samples."""
        return statistics.fmean(sample.idle for sample in self.samples[-count:]) if self.samples else 0.0


@dataclass(frozen=True)
class Choice:
    """Another number of servers, and why, as one sentence."""

    servers: int
    cause: Cause
    message: str


@dataclass(frozen=True)
class Pending:
    """Borrowed servers that do not run."""

    unschedulable: int = 0  # that no node has room for
    all: int = 0
    queued: int = 0  # that wait in a queue, where they stay until there is quota
    since_s: float = math.inf  # since when the last of the unschedulable ones is


def choose_servers(
    history: History, now: float, *, servers: int, least: int, most: int, pending: Pending, pace_s: float = PACE_S
) -> Choice | None:
    """Another number of servers than ``servers``, between ``least`` and ``most``; None to keep it.

    Servers that wait in a queue are part of ``servers``, but of none of what was measured: they wait as long as the
    trainer does, and are not given back because nodes lack room.

    ``now``: a time in seconds, on the clock of the history. ``pace_s``: least time between two changes.
    """
    bounded = min(max(servers, least), most)
    if bounded != servers:
        return Choice(bounded, "OutOfBounds", f"servers.autoscale allows {least} to {most}")
    if pending.unschedulable and now - pending.since_s >= NO_ROOM * pace_s:
        text = f"no node had room for {_count(pending.unschedulable)} for {now - pending.since_s:.0f} s"
        return Choice(max(least, servers - pending.unschedulable), "NoRoom", text) if servers > least else None
    changes, count, granted = history.changes, len(history.samples), servers - pending.queued
    if not history.samples or now - (changes[-1].at_s if changes else history.since_s) < pace_s:
        return None
    if changes and changes[-1].cause == "TrainerWaits" and count >= EARLY:
        undone = _without_gain(changes[-1], history.samples[:MEASURED], servers=granted)
        if undone is not None:
            return undone if count >= MEASURED else None
    if _is_long(history.samples):
        return None if pending.all else _more(history, now, servers=servers, most=most, pace_s=pace_s)
    if count >= SUSTAINED and history.wait(SUSTAINED) < HARDLY:
        if pending.queued:
            text = (
                f"the trainer waited for {history.wait(SUSTAINED):.1%} of a step: none of those in the queue is needed"
            )
            return Choice(granted, "NotNeeded", text)
        return _fewer(history, servers=servers, least=least)
    return None


def _is_long(samples: Sequence[Sample]) -> bool:
    """Whether the trainer waits too long, clearly after few steps, in spite of the error of the mean."""
    waits = [sample.wait for sample in samples[-MEASURED:]]
    if len(waits) < EARLY:
        return False
    mean, error = statistics.fmean(waits), _error(waits)
    return mean - CLEAR * error > 2 * TOO_LONG or (len(waits) == MEASURED and mean - error > TOO_LONG)


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _without_gain(last: Change, samples: Sequence[Sample], *, servers: int) -> Choice | None:
    """Back to the number before an increase, if steps are hardly faster: speed is proportional to 1 - wait.

    ``servers``: how many there are, of those that were requested.
    """
    if servers <= last.before:
        return None
    waits = [sample.wait for sample in samples]
    wait, error = statistics.fmean(waits), _error(waits)
    before = 1 - min(last.wait, 0.9)
    possible = min(servers / last.before, 1 / before) - 1
    gain = (1 - wait) / before - 1
    if gain + error / before >= NEEDED * possible:
        return None
    text = (
        f"{_count(servers)} instead of {last.before} made steps {max(0.0, gain):.0%} faster, {possible:.0%} were "
        f"possible: the trainer waits for something else (for {wait:.0%} of a step)"
    )
    return Choice(last.before, "NoGain", text)


def _more(history: History, now: float, *, servers: int, most: int, pace_s: float) -> Choice | None:
    wait = history.wait(MEASURED)
    text = f"the trainer waited for rollouts for {wait:.1%} of a step"
    last = history.changes[-1] if history.changes else None
    if last is not None and last.cause in DECREASES:
        before = min(most, last.before)
        return Choice(before, "TrainerWaitsAgain", f"{text} since there are {servers}") if before > servers else None
    if last is not None and last.cause == "NoRoom" and now - last.at_s < RETRY * pace_s:
        return None
    undone = [change for change in history.changes if change.cause == "NoGain"]
    if undone and undone[-1].after >= servers and _is_recent(undone, history.step) and wait <= GROWN * undone[-1].wait:
        return None
    wanted = min(
        most, math.floor(servers * MOST_FACTOR), math.ceil(servers * max(LEAST_FACTOR, 1 / (1 - min(wait, 0.9))))
    )
    return Choice(wanted, "TrainerWaits", text) if wanted > servers else None


def _fewer(history: History, *, servers: int, least: int) -> Choice | None:
    wait, idle = history.wait(SUSTAINED), history.idle(SUSTAINED)
    wanted = servers - max(1, math.floor(servers * TRIAL))
    if idle > IDLE:
        wanted = min(wanted, math.ceil(servers * (1 - idle) * (1 + SPARE)))
    wanted = max(wanted, _known_to_be_too_few(history.changes, history.step, idle=idle) + 1)
    wanted = max(wanted, least, min(servers - 1, math.ceil(servers / MOST_LESS)))
    if wanted >= servers:
        return None
    text = f"servers had no request for {idle:.0%} of the time, and the trainer waited for {wait:.1%} of a step"
    return Choice(wanted, "ServersIdle" if idle > IDLE else "FewerTried", text)


def _known_to_be_too_few(changes: Sequence[Change], step: int, *, idle: float) -> int:
    """The number of servers that made the trainer wait after a decrease; 0 if that was long ago or the load has fallen.

    ``idle``: now.
    """
    failed: list[Change] = []
    idle_before = 1.0  # before the last decrease
    for change in changes:
        if change.cause in DECREASES:
            idle_before = change.idle
        elif change.cause in INCREASES and idle_before < 1.0:
            failed.append(change)
    if not failed or idle > idle_before + FALLEN or not _is_recent(failed, step):
        return 0
    return failed[-1].before


def _is_recent(undone: Sequence[Change], step: int) -> bool:
    """Whether something that was undone so often should not be tried again yet."""
    return step - undone[-1].step < FIRST_PAUSE * 2 ** (len(undone) - 1)


def _count(servers: int) -> str:
    return f"{servers} server{'s' if servers != 1 else ''}"
