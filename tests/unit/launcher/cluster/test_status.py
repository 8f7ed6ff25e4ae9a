"""`grpo status --on kubernetes`."""

from __future__ import annotations

from typing import Any

import pytest

from areal_launcher.cluster.status import age, pod_line, row

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
