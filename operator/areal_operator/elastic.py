"""Applies ``servers.autoscale`` to a run: measurements, the number of servers they lead to, and what is shown. Pure.

The number is in the status, so that another operator continues with it. What was measured is kept in memory: after a
restart of the operator or of the trainer it is measured again before the next change.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from areal_api import resource_names
from areal_api.status import AutoscaleStatus, ExperimentStatus
from areal_operator import status as report
from areal_operator.autoscale import CAUSES, Choice, History, Pending, Sample, choose_servers
from areal_operator.clock import parse, show
from areal_operator.observed import ExperimentState, Object, condition_of, has_condition, is_terminating, label
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
        if history is None or (uid, attempt) != (state.uid, status.attempt):
            # The step is that of the attempt before, until the new trainer reports.
            history = History(now.timestamp(), status.step or 0)
        history = history.reported(status.step or 0, _sample(state))
        self._known[key] = (state.uid, status.attempt, history)
        return history

    def decided(self, key: Key, before: ExperimentStatus, after: ExperimentStatus, now: datetime) -> None:
        """The status after a plan was written: it may have another number of servers."""
        new = after.autoscale
        if key not in self._known or new is None or new.reason not in CAUSES or new == before.autoscale:
            return
        uid, attempt, history = self._known[key]
        number = before.autoscale.servers if before.autoscale is not None else new.servers
        choice = Choice(new.servers, CAUSES[new.reason], new.message)
        self._known[key] = (uid, attempt, history.changed(choice, before=number, at_s=now.timestamp()))

    def forget(self, key: Key) -> None:
        """The experiment is gone, or has a fixed number of servers."""
        self._known.pop(key, None)


def scaled(inputs: PlanInputs, *, addressed: int) -> PlanInputs:
    """The inputs with the number of servers that the operator chooses, as ``servers.replicas`` and in the status.

    ``addressed``: servers whose addresses the trainer has. The user's object never changes.
    """
    servers, status = inputs.spec.servers, inputs.status
    runs = status.phase in ("Starting", "Running") and not inputs.spec.run_policy.suspend
    if servers.autoscale is None or not runs:
        return inputs
    known = status.autoscale or AutoscaleStatus(servers=servers.replicas, since=show(inputs.now))
    number, choice = known.servers, _choice(inputs, known.servers, addressed=addressed)
    if choice is not None:
        unit = "server" if choice.servers == 1 else "servers"
        known = AutoscaleStatus(
            servers=choice.servers,
            reason=choice.cause,
            message=f"{choice.servers} {unit} instead of {number}: {choice.message}",
            since=show(inputs.now),
        )
    chosen = servers.model_copy(update={"replicas": known.servers})
    experiment = inputs.state.experiment
    experiment = experiment.model_copy(update={"spec": inputs.spec.model_copy(update={"servers": chosen})})
    inputs = inputs.with_status(status.model_copy(update={"autoscale": known}))
    return replace(inputs, state=replace(inputs.state, experiment=experiment))


def pending(inputs: PlanInputs) -> Pending:
    """Borrowed servers that no node has room for, or that do not exist yet."""
    servers = inputs.spec.servers
    nodes, scale = servers.nodes_per_server, servers.autoscale
    if scale is None:
        return Pending()
    number = inputs.status.autoscale.servers if inputs.status.autoscale is not None else servers.replicas
    by_server: dict[int, list[Object]] = {}
    for pod in inputs.observed.pods(resource_names.SERVER):
        if label(pod, resource_names.BORROWED) is not None and not is_terminating(pod):
            by_server.setdefault(report.ordinal(pod) // nodes, []).append(pod)
    waiting = [
        server
        for server in range(scale.min, number)
        if sum(has_condition(pod, "PodScheduled") for pod in by_server.get(server, ())) < nodes
    ]
    last = 0
    since_s: list[float] = []
    while number - 1 - last in waiting and (times := _unschedulable_since(by_server.get(number - 1 - last, []))):
        since_s += times
        last += 1
    return Pending(last, len(waiting), max(since_s)) if last else Pending(all=len(waiting))


def _choice(inputs: PlanInputs, number: int, *, addressed: int) -> Choice | None:
    scale, history = inputs.spec.servers.autoscale, inputs.observed.load
    now_s = inputs.now.timestamp()
    most = min(scale.max, max(scale.min, addressed))
    if inputs.status.phase != "Running" or history is None:
        history = History(now_s)  # bounds and room alone
    return choose_servers(
        history,
        now_s,
        servers=number,
        least=scale.min,
        most=most,
        pending=pending(inputs),
        pace_s=inputs.settings.pace_s,
    )


def _sample(state: ExperimentState) -> Sample | None:
    """The last report, if all servers that the run should have took part in the step."""
    status = state.status
    wanted = status.autoscale.servers if status.autoscale is not None else state.experiment.spec.servers.replicas
    if status.rollout_wait is None or status.servers_idle is None or (status.servers_current or 0) < wanted:
        return None
    return Sample(status.rollout_wait, status.servers_idle)


def _unschedulable_since(pods: list[Object]) -> list[float]:
    """When the scheduler found no node for pods of one server."""
    found = [condition_of(pod, "PodScheduled") or {} for pod in pods]
    return [
        parse(str(one["lastTransitionTime"])).timestamp()
        for one in found
        if one.get("status") == "False" and one.get("reason") == "Unschedulable" and one.get("lastTransitionTime")
    ]
