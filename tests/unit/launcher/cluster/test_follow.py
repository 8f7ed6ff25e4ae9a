"""The phase shown for an experiment in a cluster."""

from __future__ import annotations

from typing import Any

from areal_api.status import ExperimentStatus
from areal_launcher.cluster.follow import phase_text


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
    assert phase_text(ExperimentStatus(phase="Suspended", message="nothing runs")) == "suspended: nothing runs"
