"""`grpo status --on kubernetes`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from areal_launcher.cluster.status import age, pod_line, row, run_status
from areal_launcher.run_status import status_of_directory

CREATED = "2026-01-01T00:00:00Z"
CREATED_S = 1767225600.0


def body(**status: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": "exp", "creationTimestamp": CREATED}, "status": status}


def test_a_row_shows_the_state_of_an_experiment() -> None:
    cells = row(body(phase="Running", progress="2/10", reward=0.5, servers={"summary": "1/1"}), CREATED_S + 65)
    assert cells == ["team", "exp", "Running", "2/10", "0.500", "1/1", "1 min 05 s", ""]


@pytest.mark.parametrize(
    ("since", "shown"), [(CREATED, "0 s"), ("yesterday", "?"), ("", "?"), ("9999-12-31T23:59:59Z", "0 s")]
)
def test_an_age_is_never_negative_and_never_a_crash(since: str, shown: str) -> None:
    assert age(since, CREATED_S - 3600) == shown


def test_a_pod_without_a_node_or_status_is_shown() -> None:
    assert pod_line({"metadata": {"name": "exp-server-0", "uid": "u"}}) == (
        "pod exp-server-0  no node  None  restarts 0"
    )


def pod(index: int, *, ready: bool, restarts: int = 0, waiting: bool = False, **status: Any) -> dict[str, Any]:
    container = {"name": "server", "restartCount": restarts, "state": {"waiting" if waiting else "running": {}}}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {"name": f"exp-server-{index}", "uid": "u"},
        "status": {"conditions": conditions, "containerStatuses": [container], **status},
    }


def test_an_experiment_has_the_keys_that_a_run_directory_has() -> None:
    running = body(phase="Running", step=2, totalSteps=10, reward=0.5, evalReward=0.25, staleness=1.0)
    pods = [pod(0, ready=True, podIP="10.0.0.7"), pod(1, ready=False, restarts=3, waiting=True), pod(2, ready=False)]
    shown = json.loads(run_status(running, pods).as_json())
    assert list(shown) == list(json.loads(status_of_directory(Path("none")).as_json()))
    assert (shown["run"], shown["state"], shown["step"], shown["totalSteps"]) == ("exp", "running", 2, 10)
    assert shown["servers"] == [
        {"name": "server-0", "address": "10.0.0.7:30000", "state": "ready", "restarts": 0},
        {"name": "server-1", "address": None, "state": "backoff", "restarts": 3},
        {"name": "server-2", "address": None, "state": "starting", "restarts": 0},
    ]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "pending"),
        ({"phase": "Starting"}, "pending"),
        ({"phase": "Queued"}, "pending"),
        ({"phase": "Suspended"}, "stopped"),
        ({"phase": "Failed"}, "failed"),
        ({"phase": "Failed", "collapsed": True}, "collapsed"),
    ],
)
def test_phases_are_states_of_runs(status: dict[str, Any], state: str) -> None:
    assert run_status(body(**status), []).state == state
