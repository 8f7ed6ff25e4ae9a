"""The state of a run as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_api import names
from areal_launcher import run_files
from areal_launcher.run_files import RunLock
from areal_launcher.run_state import State
from areal_launcher.run_status import RunStatus, status_of_directory
from support.ui_runs import make_run

KEYS = ["run", "state", "message", "step", "totalSteps", "reward", "evalReward", "staleness", "tokensPerSecond"]
KEYS += ["servers"]


def test_a_running_run_shows_its_step_and_its_servers(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", steps=4, **{"eval-rollout/reward": 0.5, "staleness/avg": 1.5})
    servers = [
        {"name": "server-0", "address": "127.0.0.1:7000", "state": "ready", "restarts": 2},
        {"name": "server-1", "address": "unknown", "state": "backoff", "restarts": 0},
    ]
    run_files.state_file(run).write_text(json.dumps({"servers": servers}))
    lock = RunLock(run)
    shown = json.loads(status_of_directory(run).as_json())
    lock.release()
    assert list(shown) == KEYS
    assert (shown["run"], shown["state"], shown["message"]) == (str(run), "running", "")
    assert (shown["step"], shown["totalSteps"], shown["reward"]) == (4, 4, 1.0)
    assert shown["evalReward"] == 0.5
    assert shown["servers"] == [servers[0], {**servers[1], "address": None}]


def test_an_ended_run_has_no_servers_and_says_why_it_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", summary={"outcome": "failed", "error": "out of memory"})
    run_files.state_file(run).write_text('{"servers": [{"name": "server-0"}]}')
    shown = status_of_directory(run)
    assert (shown.state, shown.message, shown.servers) == ("failed", "out of memory", [])


@pytest.mark.parametrize("outcome", ["Unknown", 7])
def test_an_outcome_that_no_launcher_writes_is_finished(tmp_path: Path, outcome: object) -> None:
    run = make_run(tmp_path, "r", summary={"outcome": outcome})
    assert status_of_directory(run).state == "finished"


def test_a_given_state_replaces_that_of_the_files_and_missing_statistics_are_null(tmp_path: Path) -> None:
    shown = status_of_directory(tmp_path / "none", state=State("pending", "the job waits"))
    assert shown == RunStatus(
        run=str(tmp_path / "none"),
        state="pending",
        message="the job waits",
        step=None,
        total_steps=None,
        reward=None,
        eval_reward=None,
        staleness=None,
        tokens_per_second=None,
        servers=[],
    )


def test_damaged_statistics_are_null(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", summary={"outcome": "succeeded"})
    names.stats_file(run).unlink()
    names.stats_file(run).mkdir()
    assert status_of_directory(run).step is None
