"""Which changes of the status become Kubernetes Events."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.status import Condition, ExperimentStatus
from areal_operator.events import MAX_MESSAGE_LENGTH, event
from areal_operator.transitions import Transition, between
from support.operator_objects import NOW, state


def status(*conditions: Condition, **fields: Any) -> ExperimentStatus:
    return ExperimentStatus(conditions=list(conditions), **fields)


def reasons(before: ExperimentStatus, after: ExperimentStatus) -> list[tuple[str, str]]:
    return [(transition.type, transition.reason) for transition in between(before, after)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (status(), status(attempt=1), ("Normal", "Started")),
        (status(attempt=1), status(attempt=2, restarts=1), ("Warning", "Restarted")),
        (status(attempt=1), status(attempt=2, disruptions=1), ("Warning", "Disrupted")),
        (status(attempt=1), status(attempt=2), ("Normal", "Resumed")),
        (status(phase="Starting"), status(phase="Running"), ("Normal", "Running")),
        (status(phase="Running"), status(phase="Failed"), ("Warning", "Failed")),
    ],
)
def test_attempts_and_phases_are_events(
    before: ExperimentStatus, after: ExperimentStatus, expected: tuple[str, str]
) -> None:
    assert reasons(before, after) == [expected]


def test_a_problem_is_one_event_and_benign_reasons_are_none() -> None:
    crash = Condition(type="ServersReady", status="False", reason="CrashLoop", message="x")
    assert reasons(status(), status(crash)) == [("Warning", "CrashLoop")]
    assert reasons(status(crash), status(crash)) == []
    for reason in ("Starting", "Draining", "Suspended", "Finished"):
        assert reasons(status(), status(Condition(type="ServersReady", status="False", reason=reason))) == []


def test_a_contested_object_and_unknown_fields_are_events_once() -> None:
    contested = Condition(type="Contested", status="True", reason="ChangedByOthers")
    unknown = Condition(type="Accepted", status="True", reason="UnknownFields")
    assert reasons(status(), status(contested, unknown)) == [
        ("Warning", "UnknownFields"),
        ("Warning", "ChangedByOthers"),
    ]
    assert reasons(status(contested, unknown), status(contested, unknown)) == []


def test_an_experiment_that_does_not_fit_is_a_warning_and_an_unchecked_one_is_not() -> None:
    too_large = Condition(type="Fits", status="False", reason="DoesNotFit", message="the trainer needs 99 GiB")
    unchecked = Condition(type="Fits", status="Unknown", reason="NotChecked")
    assert reasons(status(), status(too_large)) == [("Warning", "DoesNotFit")]
    assert reasons(status(too_large), status(too_large)) == []
    assert reasons(status(), status(unchecked)) == []


def test_an_event_names_the_experiment_and_has_a_bounded_message() -> None:
    body = event(state(), Transition("Warning", "CrashLoop", "x" * 5000), NOW)
    assert body["involvedObject"]["uid"] == "uid-1"
    assert len(body["message"]) == MAX_MESSAGE_LENGTH
    assert body["lastTimestamp"] == "2026-01-31T12:00:00Z"
