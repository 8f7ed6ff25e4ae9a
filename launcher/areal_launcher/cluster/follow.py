"""Follows an experiment of a cluster by its status and its events, into the same display as a run here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from areal_api import conditions
from areal_api.experiment import KIND, GRPOExperiment
from areal_api.status import TERMINAL_PHASES, Condition, ExperimentStatus
from areal_launcher import run_files
from areal_launcher.cluster.client import ApiError, Cluster, Object, Unreachable
from areal_launcher.display import Display
from areal_launcher.errors import RunError

POLL_S = 1.0
EVENTS_S = 5.0
LOST_S = 600.0  # how long an API server that does not answer is waited for
UNSEEN_S = 20.0  # an operator that works has written a status by then
TRANSIENT = (429, 500, 502, 503, 504)
STARTING = (401, 403)  # said for seconds by an API server that starts; we have had an answer before


def status_of(body: Object) -> ExperimentStatus:
    """The status of an experiment as the API server gives it."""
    return ExperimentStatus.model_validate(body.get("status") or {})


def open_condition(status: ExperimentStatus) -> Condition | None:
    """What is to be told of the state: the first thing that is wrong, else the last that is waited for."""
    by_type = {condition.type: condition for condition in status.conditions}
    waiting = [by_type[name] for name in conditions.HEALTH if name in by_type and by_type[name].status != "True"]
    wrong = [condition for condition in waiting if condition.reason not in conditions.BENIGN]
    return next(iter([*wrong, *reversed(waiting)]), None)


def phase_text(status: ExperimentStatus) -> str:
    """What goes on now."""
    if status.phase in TERMINAL_PHASES:
        return status.phase.lower()
    if status.phase == "Suspended":
        return f"suspended: {status.message}"
    condition = open_condition(status)
    wrong = condition is not None and condition.reason not in conditions.BENIGN
    if status.phase == "Running":
        work = "training" if status.step is not None else "starting the trainer, first step"
        return f"{work}; {told(condition)}" if condition is not None and wrong else work
    if condition is None:
        return f"starting: {status.message or 'servers and trainer'}"
    return f"waiting: {told(condition)}" if wrong else f"starting: {condition.message}"


def told(condition: Condition) -> str:
    """A condition in a line."""
    return f"{condition.type}: {condition.reason}: {condition.message}"


class Follower:
    """Shows one experiment until it has ended. The run does not depend on it."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        uid: str,
        display: Display,
        experiment: GRPOExperiment,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._about = (namespace, name, uid)
        self._display = display
        self._total = experiment.spec.config.total_train_steps
        self._clock = clock
        self._began = clock()
        self._answered_at = clock()
        self._attempt, self._attempt_at = 0, clock()
        self._stats = run_files.Stats(Path())
        self._events_at: float | None = clock() - EVENTS_S
        self._known_events: set[str] | None = None  # None: those that there are belong to the past

    def run(self) -> Object:
        """The experiment once it has ended. ``RunError`` when it is deleted, or the API server is away for long."""
        while True:
            body = self._look()
            if body is not None:
                status = status_of(body)
                self._show(status)
                self._tell_events(status)
                if status.phase in TERMINAL_PHASES:
                    return body
            time.sleep(POLL_S)

    def _look(self) -> Object | None:
        """The experiment, or None where the server does not answer now."""
        namespace, name, uid = self._about
        try:
            body = self._cluster.get(KIND, namespace, name)
        except (ApiError, Unreachable) as error:
            if isinstance(error, ApiError) and error.code not in (*TRANSIENT, *STARTING):
                raise
            if self._clock() - self._answered_at > LOST_S:
                raise RunError(f"{error}, for {LOST_S:.0f} s; the run goes on without us") from error
            self._display.phase(f"{error}; the run goes on meanwhile")
            return None
        self._answered_at = self._clock()
        if body is None or body["metadata"]["uid"] != uid:
            raise RunError(f"{name} was deleted from namespace {namespace}")
        return body

    def _show(self, status: ExperimentStatus) -> None:
        if not status.conditions:
            waited = self._clock() - self._began
            late = f" for {waited // 10 * 10:.0f} s: does it look after this namespace?" if waited > UNSEEN_S else ""
            self._display.phase(f"waiting: the operator has not looked at it{late}")
            return
        self._display.phase(phase_text(status))
        if status.attempt != self._attempt:
            self._attempt, self._attempt_at = status.attempt, self._clock()
        if status.step:
            self._take(status)
            self._display.update(self._stats, status.total_steps or self._total)

    def _take(self, status: ExperimentStatus) -> None:
        """Take a step that is new, under the names of stats.jsonl; its time is when we saw it."""
        assert status.step is not None
        if self._stats.lines and self._stats.lines[-1]["step"] == status.step:
            return
        told = {
            run_files.REWARD: status.reward,
            run_files.EVALUATION: status.eval_reward,
            run_files.STALENESS: status.staleness,
            run_files.TOKENS_PER_SECOND: status.tokens_per_second,
        }
        line = {name: value for name, value in told.items() if value is not None}
        self._stats.add({"step": status.step, "time": self._clock() - self._attempt_at, **line})

    def _tell_events(self, status: ExperimentStatus) -> None:
        """Tell the warnings that are new and not shown as the phase already."""
        if self._events_at is None or self._clock() - self._events_at < EVENTS_S:
            return
        self._events_at = self._clock()
        namespace, name, uid = self._about
        try:
            fields = f"involvedObject.name={name},involvedObject.kind={KIND},type=Warning"
            events = self._cluster.list("Event", namespace, fields=fields)
        except Unreachable:
            return
        except ApiError as error:
            if error.code == 403:
                self._events_at = None
                self._display.message(f"warnings cannot be shown: {error}")
            elif error.code not in TRANSIENT:
                raise
            return
        first = self._known_events is None
        known = self._known_events or set()
        for event in sorted(events, key=lambda event: str(event.get("lastTimestamp"))):
            key = str(event["metadata"]["uid"])
            text = f"warning: {event.get('reason')}: {event.get('message')}"
            new = key not in known and event["involvedObject"].get("uid") == uid
            if new and not first and str(event.get("message")) not in phase_text(status):
                self._display.message(text)
            known.add(key)
        self._known_events = known
