"""Changes between two statuses that deserve a Kubernetes Event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from areal_api import conditions
from areal_api.status import AutoscaleStatus, Condition, ExperimentStatus
from areal_operator.status import find


@dataclass(frozen=True)
class Transition:
    """One Event."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def between(before: ExperimentStatus, after: ExperimentStatus) -> list[Transition]:
    """Transitions of attempt, phase, number of servers and conditions, in this order."""
    result: list[Transition] = []
    if after.attempt > before.attempt:
        result.append(_attempt(before, after))
    if after.phase != before.phase and after.phase not in ("Pending", "Starting"):
        kind: Literal["Normal", "Warning"] = "Warning" if after.phase == "Failed" else "Normal"
        result.append(Transition(kind, after.phase, after.message or f"the experiment is {after.phase}"))
    result += _scaled(before.autoscale, after.autoscale)
    for name in (
        *conditions.HEALTH,
        conditions.ADMITTED,
        conditions.AGENTS_READY,
        conditions.FITS,
        conditions.POLICY_HEALTHY,
        conditions.CONTESTED,
    ):
        old, new = find(before.conditions, name), find(after.conditions, name)
        if new is not None and _is_trouble(new) and (old is None or old.reason != new.reason):
            result.append(Transition("Warning", new.reason, new.message))
    return result


def _scaled(before: AutoscaleStatus | None, after: AutoscaleStatus | None) -> list[Transition]:
    """Another number of servers, and borrowed servers that a queue has admitted or evicted."""
    if after is None:
        return []
    result: list[Transition] = []
    if after.reason and after.decision != (before and before.decision):
        result.append(Transition("Normal", "Autoscaled", after.message))
    admitted = (before.admitted or 0) if before is not None else 0
    if after.admitted is None or after.admitted == admitted:
        return result
    why = f"; {after.queue}" if after.queue else ""
    text = f"{after.admitted} instead of {admitted} borrowed servers are admitted{why}"
    if after.admitted > admitted:
        result.append(Transition("Normal", "BorrowedAdmitted", text))
    elif before is not None and after.servers >= before.servers:  # else the operator gave them back
        result.append(Transition("Normal", "BorrowedEvicted", text))
    return result


def _attempt(before: ExperimentStatus, after: ExperimentStatus) -> Transition:
    if after.restarts > before.restarts:
        return Transition("Warning", "Restarted", f"attempt {after.attempt} starts, restart {after.restarts}")
    if after.disruptions > before.disruptions:
        text = f"attempt {after.attempt} starts after a disruption, which does not count"
        return Transition("Warning", "Disrupted", text)
    return Transition("Normal", "Resumed" if before.attempt else "Started", f"attempt {after.attempt} starts")


def _is_trouble(condition: Condition) -> bool:
    if condition.type == conditions.CONTESTED or condition.reason == conditions.UNKNOWN_FIELDS:
        return condition.status == "True"
    return condition.status == "False" and condition.reason not in conditions.BENIGN
