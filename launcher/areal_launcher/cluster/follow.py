"""Follows an experiment's status and events in the cluster, with the same display as a local run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from areal_api import conditions, stat_names
from areal_api.experiment import KIND, GRPOExperiment
from areal_api.status import TERMINAL_PHASES, Condition, ExperimentStatus
from areal_api.stored import read_status
from areal_launcher import run_files
from areal_launcher.cluster.client import ApiError, Cluster, Object, Unreachable
from areal_launcher.display import Display
from areal_launcher.errors import RunError

POLL_S = 1.0
EVENTS_S = 5.0
UNREACHABLE_TIMEOUT_S = 600.0  # maximum time to wait for an API server that does not respond
NO_STATUS_S = 20.0  # a working operator has written a status by then
TRANSIENT = (429, 500, 502, 503, 504)
STARTING = (401, 403)  # returned for seconds by a starting API server; our credentials worked before


def status_of(body: Object) -> ExperimentStatus:
    """Parse the status of an experiment returned by the API server."""
    return read_status(body)


def open_condition(status: ExperimentStatus) -> Condition | None:
    """The condition to show: the first with a problem, else the last that is still pending."""
    by_type = {condition.type: condition for condition in status.conditions}
    pending = [
        by_type[name]
        for name in (*conditions.HEALTH, conditions.AGENTS_READY, conditions.POLICY_HEALTHY)
        if name in by_type and by_type[name].status != "True" and by_type[name].reason != conditions.WAITING_FOR_TRAINER
    ]
    problems = [condition for condition in pending if condition.reason not in conditions.BENIGN]
    return next(iter([*problems, *reversed(pending)]), None)


def phase_text(status: ExperimentStatus) -> str:
    """The current phase."""
    if status.phase in TERMINAL_PHASES:
        return status.phase.lower()
    if status.phase == "Suspended":
        return f"suspended: {status.message}"
    if status.phase == "Queued":
        return f"queued: {status.message}"
    condition = open_condition(status)
    is_problem = condition is not None and condition.reason not in conditions.BENIGN
    if status.phase == "Running":
        work = "training" if status.step is not None else "starting the trainer, first step"
        return f"{work}; {condition_line(condition)}" if condition is not None and is_problem else work
    if condition is None:
        return f"starting: {status.message or 'servers and trainer'}"
    return f"waiting: {condition_line(condition)}" if is_problem else f"starting: {condition.message}"


def condition_line(condition: Condition) -> str:
    """A condition on one line."""
    return f"{condition.type}: {condition.reason}: {condition.message}"


class Follower:
    """Shows one experiment until it ends. The run does not depend on it."""

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
        self._identity = (namespace, name, uid)
        self._display = display
        self._total = experiment.spec.config.total_train_steps
        self._clock = clock
        self._started_at = clock()
        self._answered_at = clock()
        self._attempt, self._attempt_at = 0, clock()
        self._stats = run_files.Stats(Path())
        self._events_at: float | None = clock() - EVENTS_S
        self._known_events: set[str] | None = None  # None until the first poll, whose events are old

    def run(self) -> Object:
        """Follow to the end; the final experiment. Raises ``RunError`` if it is deleted or the API server is lost."""
        while True:
            body = self._poll()
            if body is not None:
                status = status_of(body)
                self._show(status)
                self._show_events(status)
                if status.phase in TERMINAL_PHASES:
                    return body
            time.sleep(POLL_S)

    def _poll(self) -> Object | None:
        """The experiment, or None while the server does not respond."""
        namespace, name, uid = self._identity
        try:
            body = self._cluster.get(KIND, namespace, name)
        except (ApiError, Unreachable) as error:
            if isinstance(error, ApiError) and error.code not in (*TRANSIENT, *STARTING):
                raise
            if self._clock() - self._answered_at > UNREACHABLE_TIMEOUT_S:
                raise RunError(f"{error}, for {UNREACHABLE_TIMEOUT_S:.0f} s; the run continues") from error
            self._display.phase(f"{error}; the run continues meanwhile")
            return None
        self._answered_at = self._clock()
        if body is None or body["metadata"].get("uid") != uid:
            raise RunError(f"{name} was deleted from namespace {namespace}")
        return body

    def _show(self, status: ExperimentStatus) -> None:
        if not status.conditions:
            waited = self._clock() - self._started_at
            late = f" for {waited // 10 * 10:.0f} s; does it watch this namespace?" if waited > NO_STATUS_S else ""
            self._display.phase(f"waiting: the operator has written no status{late}")
            return
        self._display.phase(phase_text(status))
        if status.attempt != self._attempt:
            self._attempt, self._attempt_at = status.attempt, self._clock()
        if status.step:
            self._record(status)
            self._display.update(self._stats, status.total_steps or self._total)

    def _record(self, status: ExperimentStatus) -> None:
        """Record a new step under the names of stats.jsonl, with the time at which it was seen."""
        assert status.step is not None
        if self._stats.lines and self._stats.lines[-1]["step"] == status.step:
            return
        reported = {
            stat_names.TASK_REWARD: status.reward,
            stat_names.EVAL_REWARD: status.eval_reward,
            stat_names.STALENESS: status.staleness,
            stat_names.TOKENS_PER_SECOND: status.tokens_per_second,
        }
        line = {name: value for name, value in reported.items() if value is not None}
        self._stats.add({"step": status.step, "time": self._clock() - self._attempt_at, **line})

    def _show_events(self, status: ExperimentStatus) -> None:
        """Show new warnings that the phase does not already show."""
        if self._events_at is None or self._clock() - self._events_at < EVENTS_S:
            return
        self._events_at = self._clock()
        namespace, name, uid = self._identity
        try:
            fields = f"involvedObject.name={name},involvedObject.kind={KIND},type=Warning"
            events = self._cluster.list("Event", namespace, fields=fields)
        except Unreachable:
            return
        except ApiError as error:
            if error.code == 403:
                self._events_at = None
                self._display.message(f"cannot show warnings: {error}")
            elif error.code not in TRANSIENT:
                raise
            return
        first = self._known_events is None
        known = self._known_events or set()
        for event in sorted(events, key=lambda event: str(event.get("lastTimestamp"))):
            key = str(event["metadata"].get("uid"))
            text = f"warning: {event.get('reason')}: {event.get('message')}"
            is_new = key not in known and (event.get("involvedObject") or {}).get("uid") == uid
            if is_new and not first and str(event.get("message")) not in phase_text(status):
                self._display.message(text)
            known.add(key)
        self._known_events = known
