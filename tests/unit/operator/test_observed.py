"""Reading objects of the API server: labels, conditions, containers, also of objects that others have reduced."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.resource_names import SERVER, TRAINER
from areal_operator.observed import (
    Observed,
    WarningEvent,
    annotation,
    is_active,
    is_finished,
    is_ready,
    is_terminating,
    label,
    termination_of,
)
from support.operator_objects import deleted, exited, job, pod, terminating


def test_objects_without_labels_annotations_and_status_are_read() -> None:
    for metadata in ({"name": "x"}, {"name": "x", "labels": None, "annotations": None}):
        bare: dict[str, Any] = {"kind": "Pod", "metadata": metadata}
        assert (label(bare, "a"), annotation(bare, "a")) == (None, None)
        assert is_active(bare)
        assert not is_ready(bare)
        assert not is_finished(bare)
        assert not is_terminating(bare)
        assert termination_of(bare, "trainer") is None
    assert not is_finished({"kind": "Job", "metadata": {"name": "x"}, "status": {"conditions": None}})


def test_pods_are_selected_by_component_and_attempt_and_sorted_by_name() -> None:
    pods = [pod(TRAINER, 1), pod(SERVER, 1), pod(TRAINER, 0, attempt=2), pod(SERVER, 0), pod(TRAINER, 0)]
    observed = Observed({"Pod": pods}, deleted=[deleted(pod(TRAINER, 5)), deleted(job(1))])
    assert [one["metadata"]["name"] for one in observed.pods(SERVER)] == ["case-server-0", "case-server-1"]
    assert [one["metadata"]["name"] for one in observed.trainer_pods(1)] == ["case-trainer-1-0-x", "case-trainer-1-1-x"]
    assert [one["metadata"]["name"] for one in observed.deleted_trainer_pods(1)] == ["case-trainer-1-5-x"]
    assert len(observed.pods()) == 5
    assert observed.get_deleted("Job", "case-trainer-1") is not None
    assert observed.get("Job", "case-trainer-1") is None


@pytest.mark.parametrize("outcome", ["Complete", "Failed"])
def test_a_job_is_finished_once_a_final_condition_is_true(outcome: str) -> None:
    assert is_finished(job(1, outcome))
    assert not is_finished(job(1))
    started = job(1, outcome)
    started["status"]["conditions"][0]["status"] = "False"
    assert not is_finished(started)


def test_a_ready_pod_runs_and_is_not_being_deleted() -> None:
    assert is_ready(pod(SERVER))
    assert not is_ready(terminating(pod(SERVER)))
    assert not is_ready(pod(SERVER, phase="Failed"))
    assert not is_active(pod(SERVER, phase="Succeeded"))


def test_the_termination_is_that_of_the_named_container() -> None:
    ended = pod(TRAINER, **exited(3, sidecar="proxy"))
    found = termination_of(ended, "trainer")
    assert found is not None
    assert found["exitCode"] == 3
    assert termination_of(ended, "proxy") is None
    assert termination_of(ended, "prepare") is None


def test_the_newest_warning_with_a_reason_counts() -> None:
    warnings = [WarningEvent("a", "Failed", "1"), WarningEvent("a", "Failed", "2"), WarningEvent("b", "Failed", "3")]
    observed = Observed(warnings=[*warnings, WarningEvent("a", "Other", "4")])
    found = observed.warning_for("a", "Failed", "BackOff")
    assert found is not None
    assert found.message == "2"
    assert observed.warning_for("c", "Failed") is None
