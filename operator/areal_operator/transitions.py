"""Changes between two statuses that deserve a Kubernetes Event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from areal_api import conditions
from areal_api.status import Condition, ExperimentStatus
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
    scaled = after.autoscale
    if scaled is not None and scaled.reason and scaled != before.autoscale:
        result.append(Transition("Normal", "Autoscaled", scaled.message))
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
