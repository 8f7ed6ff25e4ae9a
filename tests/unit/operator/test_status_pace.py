"""When a changed status is written."""

from __future__ import annotations

import pytest

from areal_api.status import Condition, ExperimentStatus, ServersStatus
from areal_operator.status_pace import StatusPace, is_urgent

KEY = ("ns", "case")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def with_condition(kind: str, status: str, reason: str, message: str = "", **fields: object) -> ExperimentStatus:
    since = "2026-01-31T12:00:00Z"
    one = Condition.model_validate(
        {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
    )
    return ExperimentStatus.model_validate({"conditions": [one], **fields})


def test_how_far_a_start_has_come_is_written_once_per_interval() -> None:
    clock = Clock()
    pace = StatusPace(2.0, clock)
    first = ExperimentStatus(phase="Starting", attempt=1)
    more = first.model_copy(update={"message": "0 of 1 servers are ready", "servers": ServersStatus(desired=1)})
    assert pace.wait_s(KEY, first, more) == 0.0  # nothing was written before
    pace.written(KEY)
    assert pace.wait_s(KEY, first, more) == 2.0
    clock.now += 1.5
    assert pace.wait_s(KEY, first, more) == 0.5
    assert pace.wait_s(("ns", "other"), first, more) == 0.0
    clock.now += 0.5
    assert pace.wait_s(KEY, first, more) == 0.0


def test_a_transition_is_written_at_once() -> None:
    pace = StatusPace(2.0, Clock())
    pace.written(KEY)
    starting = ExperimentStatus(phase="Starting", attempt=1)
    assert pace.wait_s(KEY, starting, starting.model_copy(update={"phase": "Running"})) == 0.0
    assert pace.wait_s(KEY, starting, starting.model_copy(update={"observed_generation": 2})) == 0.0


@pytest.mark.parametrize(
    ("before", "after", "urgent"),
    [
        (("ServersReady", "False", "Starting"), ("ServersReady", "True", "Ready"), False),
        (("ServersReady", "False", "Starting"), ("ServersReady", "False", "CrashLoop"), True),  # an Event tells it
        (("StorageReady", "False", "Creating"), ("StorageReady", "True", "Bound"), False),
        (("Suspended", "False", "NotSuspended"), ("Suspended", "False", "Suspending"), True),  # it then completes
        (("Accepted", "True", "Accepted"), ("Accepted", "False", "Refused"), True),
        (("Accepted", "False", "Refused"), ("Accepted", "True", "Accepted"), True),
    ],
)
def test_conditions_that_decide_or_warn_are_urgent(
    before: tuple[str, str, str], after: tuple[str, str, str], urgent: bool
) -> None:
    assert is_urgent(with_condition(*before), with_condition(*after)) is urgent


def test_a_longer_message_of_a_known_problem_is_not_urgent() -> None:
    known = with_condition("TrainerRunning", "False", "Unschedulable", "0/1 nodes are available")
    assert not is_urgent(known, with_condition("TrainerRunning", "False", "Unschedulable", "0/2 nodes are available"))
