"""The cache of experiments: of two reports the newer one counts, and which changes need a reconcile."""

from __future__ import annotations

from typing import Any

from areal_operator.experiments import Experiments
from areal_operator.observed import Object

KEY = ("ns", "exp")


def experiment(version: int, generation: int = 1, *, uid: str = "u", **status: Any) -> Object:
    metadata = {"namespace": "ns", "name": "exp", "uid": uid, "generation": generation}
    return {"metadata": {**metadata, "resourceVersion": str(version)}, "status": status}


def test_progress_needs_no_reconcile_and_an_edit_does() -> None:
    experiments = Experiments()
    assert experiments.put(experiment(1, phase="Running"))
    assert not experiments.put(experiment(2, phase="Running", step=3, reward=0.5))
    assert experiments.statuses()[KEY]["step"] == 3
    assert experiments.put(experiment(3, 2, phase="Running", step=3))
    assert experiments.put(experiment(4, 2, phase="Failed", step=3))
    experiments.remove(KEY)
    assert experiments.known() == []
    assert experiments.put(experiment(4, 2, phase="Failed", step=3))


def test_a_change_of_the_policys_health_needs_a_reconcile() -> None:
    experiments = Experiments()
    assert experiments.put(experiment(1, phase="Running", step=1, healthWarnings=[], collapsed=False))
    assert not experiments.put(experiment(2, phase="Running", step=2, healthWarnings=[], collapsed=False))
    assert experiments.put(experiment(3, phase="Running", step=3, healthWarnings=["drift"], collapsed=False))


def test_reports_about_waiting_need_a_reconcile_if_the_number_of_servers_depends_on_them() -> None:
    for autoscale, needed in ({"min": 1, "max": 2}, True), (None, False):
        experiments = Experiments()
        for version, status in ((1, {"step": 1, "rolloutWait": 0.5}), (2, {"step": 2, "rolloutWait": 0.5})):
            body = {**experiment(version, phase="Running", **status), "spec": {"servers": {"autoscale": autoscale}}}
            assert experiments.put(body) == (needed or version == 1)
        body = {**experiment(3, phase="Running", step=2, rolloutWait=0.5, reward=0.5), "spec": body["spec"]}
        assert not experiments.put(body)


def test_an_older_report_changes_nothing_and_a_successor_does() -> None:
    experiments = Experiments()
    experiments.put(experiment(5, phase="Running"))
    assert not experiments.put(experiment(4, phase="Starting"))
    assert experiments.statuses()[KEY] == {"phase": "Running"}
    assert experiments.put(experiment(4, uid="successor"))


def test_the_response_to_a_write_counts_and_its_event_needs_no_reconcile() -> None:
    experiments = Experiments()
    experiments.put(experiment(5, phase="Starting"))
    assert experiments.refresh(experiment(6, phase="Running"))
    assert not experiments.refresh(experiment(6, phase="Running"))
    assert not experiments.put(experiment(6, phase="Running"))
    assert experiments.statuses()[KEY] == {"phase": "Running"}


def test_the_response_to_a_write_does_not_bring_back_a_deleted_experiment() -> None:
    experiments = Experiments()
    experiments.put(experiment(5))
    experiments.remove(KEY)
    assert not experiments.refresh(experiment(6))
    assert experiments.get(KEY) is None


def test_a_body_is_kept_without_its_field_managers() -> None:
    experiments = Experiments()
    body = experiment(1, phase="Running")
    experiments.put({**body, "metadata": {**body["metadata"], "managedFields": [{"manager": "m"}]}})
    assert experiments.get(KEY) == body
