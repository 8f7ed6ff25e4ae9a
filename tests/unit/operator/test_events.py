"""Events of experiments: what the API server accepts, and whom they are about."""

from __future__ import annotations

from areal_operator.events import MAX_MESSAGE_LENGTH, event
from areal_operator.transitions import Transition
from support.operator_objects import NOW, UID, state


def test_an_event_is_about_the_experiment_with_its_uid() -> None:
    made = event(state(), Transition("Warning", "Restarted", "attempt 2 starts"), NOW)
    about = made["involvedObject"]
    assert (about["kind"], about["namespace"], about["name"], about["uid"]) == ("GRPOExperiment", "ns", "case", UID)
    assert about["namespace"] == made["metadata"]["namespace"]  # required by the API server
    assert (made["type"], made["reason"], made["message"]) == ("Warning", "Restarted", "attempt 2 starts")
    assert made["firstTimestamp"] == made["lastTimestamp"] == "2026-01-31T12:00:00Z"


def test_messages_are_cut_to_what_the_api_server_takes() -> None:
    assert len(event(state(), Transition("Normal", "X", "m" * 5000), NOW)["message"]) == MAX_MESSAGE_LENGTH < 1024


def test_two_events_of_the_same_moment_have_different_names() -> None:
    transition = Transition("Normal", "Started", "")
    names = {event(state(), transition, NOW)["metadata"]["name"] for _ in range(50)}
    assert len(names) == 50
