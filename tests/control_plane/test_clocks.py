"""Clocks of several machines: times in the status that another operator wrote, on a real API server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from areal_operator.clock import show
from hack.testbed.experiments import Experiment
from hack.testbed.fake_kubelet import end
from hack.testbed.kube_api import eventually
from hack.testbed.operator_process import OperatorProcess


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=400)], ids=["hour", "year"])
def test_an_operator_with_a_slower_clock_continues_without_a_delay(
    experiment: Experiment, operator: OperatorProcess, ahead: timedelta
) -> None:
    """Its predecessor's clock was ahead: attempt and outcome are in the future, from which the delay would count."""
    namespace = experiment.namespace
    experiment.apply()
    experiment.until_phase("Running")
    operator.stop()
    try:
        namespace.behave("trainer", end(1))
        eventually(lambda: failed(experiment), "the Job has failed")
        future = show(datetime.now(UTC) + ahead)
        outcome = {"result": "Failed", "reason": "Error", "message": "exit status 1", "time": future}
        changes = {"status": {"attemptSince": future, "activeSince": future, "outcome": outcome}}
        namespace.api.patch("GRPOExperiment", namespace.name, experiment.name, changes, "status")
    finally:
        operator.start()
    experiment.until(lambda now: now["attempt"] >= 2, "the next attempt", 60.0)
    status = experiment.status
    assert status["restarts"] >= 1
    assert status["attemptSince"] < future


def failed(experiment: Experiment) -> bool:
    (job,) = experiment.namespace.list("Job")
    return any(one["type"] == "Failed" for one in job.get("status", {}).get("conditions", ()))
