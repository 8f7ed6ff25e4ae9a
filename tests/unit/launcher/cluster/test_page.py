"""The experiments of a cluster on the page; tests/control_plane serves them from a real API server."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from areal_launcher.cluster import page
from areal_launcher.cluster.client import ApiError
from areal_launcher.cluster.page import ClusterRuns


def experiment(name: str, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}"},
        "spec": {"servers": {"replicas": 2}},
        "status": {"phase": "Running", "totalSteps": 9, "servers": {"ready": 2, "desired": 2}, **status},
    }


class Listed:
    """An API server's list of experiments, or its error."""

    def __init__(self, *bodies: dict[str, Any]) -> None:
        self.bodies = list(bodies)
        self.error: ApiError | None = None
        self.asked: list[str | None] = []

    def list(self, kind: str, namespace: str | None) -> list[dict[str, Any]]:
        self.asked.append(namespace)
        if self.error is not None:
            raise self.error
        return self.bodies


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LIST_S", 0.0)


def test_an_experiment_is_a_run_whose_series_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Listed(experiment("a", step=3, reward=0.25), experiment("b", phase="Failed", message="no GPU"))
    runs = ClusterRuns(cluster, ["team"])  # type: ignore[arg-type]
    first, second = runs.rows()
    assert (first["name"], first["state"], first["step"], first["total"]) == ("team/a", "running", 3, 9)
    assert (second["state"], second["reason"]) == ("failed", "no GPU")
    run = runs.find(first["id"])
    assert run is not None
    cluster.bodies[0] = experiment("a", step=5, reward=0.5, serversCurrent=2)
    run.poll()
    points = run.table.points(["task_reward"], first=0, last=99, limit=10)
    assert (points.steps, points.means) == ([3, 5], {"task_reward": [0.25, 0.5]})
    shown = run.overview()
    assert {figure["label"]: figure["value"] for figure in shown["figures"]}["servers"] == 2.0
    assert [chart["title"] for chart in shown["charts"]] == ["Reward", "Servers"]
    assert yaml.safe_load(run.configuration()) == {"servers": {"replicas": 2}}
    assert run.directory is None


def test_problems_are_events_when_they_appear() -> None:
    waiting = {"type": "ServersReady", "status": "False", "reason": "Unschedulable", "message": "no node has a GPU"}
    cluster = Listed(experiment("a", step=3, conditions=[waiting]))
    runs = ClusterRuns(cluster, [])  # type: ignore[arg-type]
    run = runs.find(runs.rows()[0]["id"])
    assert run is not None
    run.poll()
    assert run.overview()["events"] == [{"step": 3, "kind": "warning", "text": "ServersReady: no node has a GPU"}]
    assert run.overview()["problems"] == ["ServersReady: no node has a GPU"]
    cluster.bodies[0] = experiment("a", step=4, conditions=[waiting | {"status": "True"}])
    run.poll()
    assert (len(run.overview()["events"]), run.overview()["problems"]) == (1, [])


def test_a_deleted_experiment_is_gone_and_one_of_the_same_name_is_another() -> None:
    cluster = Listed(experiment("a"))
    runs = ClusterRuns(cluster, ["team"])  # type: ignore[arg-type]
    before = runs.rows()[0]["id"]
    cluster.bodies[0]["metadata"]["uid"] = "uid-later"
    after = runs.rows()[0]["id"]
    assert before != after
    assert runs.find(before) is None


def test_a_server_that_fails_keeps_what_was_seen() -> None:
    cluster = Listed(experiment("a", step=3))
    runs = ClusterRuns(cluster, ["team"])  # type: ignore[arg-type]
    identifier = runs.rows()[0]["id"]
    cluster.error = ApiError(503, "not now", {})
    run = runs.find(identifier)
    assert run is not None
    run.poll()
    assert run.overview()["problems"] == ["what is shown may be old: not now"]
    assert len(runs.rows()) == 1


def test_many_pages_are_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LIST_S", 60.0)
    cluster = Listed(experiment("a"))
    runs = ClusterRuns(cluster, ["team"])  # type: ignore[arg-type]
    for _ in range(10):
        runs.rows()
    assert cluster.asked == ["team"]
