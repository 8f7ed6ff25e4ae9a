"""The phase shown for an experiment in a cluster."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api.status import ExperimentStatus
from areal_launcher.cluster.follow import phase_text, status_of
from areal_launcher.cluster.status import status_metrics


def state(phase: str, reason: str = "", message: str = "", **more: Any) -> ExperimentStatus:
    servers = {"type": "ServersReady", "status": "False" if reason else "True", "reason": reason, "message": message}
    trainer = {"type": "TrainerRunning", "status": "False", "reason": "Starting", "message": "0 of 1 pods run"}
    conditions = [servers, *([trainer] if phase == "Starting" else [])]
    return ExperimentStatus.model_validate({"phase": phase, "conditions": conditions, **more})


def test_the_phase_shows_a_problem_or_else_what_is_pending() -> None:
    assert phase_text(state("Starting")) == "starting: 0 of 1 pods run"
    text = phase_text(state("Starting", "Unschedulable", "0/2 nodes are available"))
    assert text == "waiting: ServersReady: Unschedulable: 0/2 nodes are available"
    assert phase_text(state("Running")) == "starting the trainer, first step"
    assert phase_text(state("Running", step=3)) == "training"
    text = phase_text(state("Running", "CrashLoop", "server-0 ended", step=3))
    assert text == "training; ServersReady: CrashLoop: server-0 ended"
    assert phase_text(ExperimentStatus(phase="Queued", message="queue a: no quota")) == "queued: queue a: no quota"
    assert phase_text(ExperimentStatus(phase="Suspended", message="nothing runs")) == "suspended: nothing runs"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["phase", "conditions", "step", "totalSteps", "reward", "servers", "message", "restarts", "new"])


@settings(deadline=None, max_examples=150)
@given(st.one_of(values, st.dictionaries(keys, values, max_size=6)))
def test_a_status_of_another_version_is_shown_as_far_as_it_is_known(status: Any) -> None:
    parsed = status_of({"status": status})
    phase_text(parsed)
    status_metrics(parsed)


def test_only_the_keys_that_are_unknown_are_left_out() -> None:
    parsed = status_of({"status": {"phase": "Resizing", "step": 3, "servers": {"ready": -1}, "attempt": 2}})
    assert (parsed.phase, parsed.step, parsed.attempt) == ("Pending", 3, 2)
