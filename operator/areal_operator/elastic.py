"""Applies ``servers.autoscale`` to a run: measurements, the number of servers they lead to, and what is shown. Pure.

The number is in the status, so that another operator continues with it. What was measured is kept in memory: after a
restart of the operator or of the trainer it is measured again before the next change.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime

from areal_api.status import AutoscaleStatus, ExperimentStatus, shortened
from areal_operator.autoscale import CAUSES, Choice, History, Pending, Sample, choose_servers
from areal_operator.borrowing import Borrowing, borrowing, is_scheduled, pods_by_server
from areal_operator.clock import parse, show
from areal_operator.observed import ExperimentState, Object, condition_of, is_terminating
from areal_operator.plan_inputs import PlanInputs
from areal_operator.store import Key


class Loads:
    """What the trainers of runs with ``servers.autoscale`` have reported, each about its present attempt."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[str, int, History]] = {}  # UID, attempt

    def observe(self, key: Key, state: ExperimentState, now: datetime) -> History | None:
        """Add what the status reports; None without ``servers.autoscale``."""
        status = state.status
        if state.experiment.spec.servers.autoscale is None:
            self.forget(key)
            return None
        uid, attempt, history = self._known.get(key, ("", 0, None))
        servers = _granted(state)
        if history is None or (uid, attempt) != (state.uid, status.attempt):
            # The step is that of the attempt before, until the new trainer reports.
            history = History(now.timestamp(), status.step or 0)
        history = history.reported(status.step or 0, _sample(state, servers), servers=servers)
        self._known[key] = (state.uid, status.attempt, history)
        return history

    def decided(self, key: Key, before: ExperimentStatus, after: ExperimentStatus, now: datetime) -> None:
        """The status after a plan was written: it may have another number of servers."""
        new = after.autoscale
        if key not in self._known or new is None or new.reason not in CAUSES:
            return
        if before.autoscale is not None and new.decision == before.autoscale.decision:
            return
        uid, attempt, history = self._known[key]
        number = before.autoscale.servers if before.autoscale is not None else new.servers
        choice = Choice(new.servers, CAUSES[new.reason], new.message)
        self._known[key] = (uid, attempt, history.changed(choice, before=number, at_s=now.timestamp()))

    def forget(self, key: Key) -> None:
        """The experiment is gone, or has a fixed number of servers."""
        self._known.pop(key, None)


def scaled(inputs: PlanInputs) -> PlanInputs:
    """The inputs with the number of servers that the operator chooses, as ``servers.replicas`` and in the status.

    The user's object never changes.
    """
    servers, status = inputs.spec.servers, inputs.status
    runs = status.phase in ("Starting", "Running") and inputs.gate.open and not inputs.spec.run_policy.suspend
    if servers.autoscale is None or not runs:
        return inputs
    known = status.autoscale or AutoscaleStatus(servers=servers.replicas, since=show(inputs.now))
    number, borrowed = known.servers, borrowing(inputs, servers=known.servers)
    choice = _choice(inputs, number, borrowed)
    if choice is not None:
        borrowed = borrowing(inputs, servers=choice.servers)
        unit = "server" if choice.servers == 1 else "servers"
        known = AutoscaleStatus(
            servers=choice.servers,
            reason=choice.cause,
            message=f"{choice.servers} {unit} instead of {number}: {choice.message}",
            since=show(inputs.now),
        )
    admitted = None if inputs.gate.queue is None else len(borrowed.placed)
    known = known.model_copy(update={"admitted": admitted, "queue": shortened(borrowed.waits)})
    chosen = servers.model_copy(update={"replicas": known.servers})
    experiment = inputs.state.experiment
    experiment = experiment.model_copy(update={"spec": inputs.spec.model_copy(update={"servers": chosen})})
    inputs = inputs.with_status(status.model_copy(update={"autoscale": known}))
    return replace(inputs, state=replace(inputs.state, experiment=experiment))


def pending(inputs: PlanInputs, borrowed: Borrowing) -> Pending:
    """Borrowed servers that no node has room for, that wait in a queue, or that do not exist yet."""
    nodes, pods = inputs.spec.servers.nodes_per_server, pods_by_server(inputs)
    waiting = [number for number in borrowed.placed if not is_scheduled(pods.get(number, []), nodes=nodes)]
    queued = len(borrowed.numbers) - len(borrowed.placed)
    found = [times for number in waiting if (times := _unschedulable_since(pods.get(number, [])))]
    since_s = max((max(times) for times in found), default=math.inf)
    return Pending(len(found), queued + len(waiting), queued, since_s)


def _choice(inputs: PlanInputs, number: int, borrowed: Borrowing) -> Choice | None:
    scale, history = inputs.spec.servers.autoscale, inputs.observed.load
    now_s = inputs.now.timestamp()
    most = min(scale.max, max(scale.min, inputs.addressed()))
    if inputs.status.phase != "Running" or history is None:
        history = History(now_s)  # bounds and room alone
    return choose_servers(
        history,
        now_s,
        servers=number,
        least=scale.min,
        most=most,
        pending=pending(inputs, borrowed),
        pace_s=inputs.settings.pace_s,
    )


def _granted(state: ExperimentState) -> int:
    """Servers that the run may have at present."""
    known, servers = state.status.autoscale, state.experiment.spec.servers
    if known is None:
        return servers.replicas
    return known.servers if known.admitted is None else servers.guaranteed + known.admitted


def _sample(state: ExperimentState, servers: int) -> Sample | None:
    """The last report, if all ``servers`` took part in the step."""
    status = state.status
    if status.rollout_wait is None or status.servers_idle is None or (status.servers_current or 0) < servers:
        return None
    return Sample(status.rollout_wait, status.servers_idle)


def _unschedulable_since(pods: list[Object]) -> list[float]:
    """When the scheduler found no node for pods of one server."""
    found = [condition_of(pod, "PodScheduled") or {} for pod in pods if not is_terminating(pod)]
    return [
        parse(str(one["lastTransitionTime"])).timestamp()
        for one in found
        if one.get("status") == "False" and one.get("reason") == "Unschedulable" and one.get("lastTransitionTime")
    ]
