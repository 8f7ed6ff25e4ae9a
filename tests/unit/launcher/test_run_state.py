"""The state of a run, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_api import names
from areal_launcher.run_files import RunLock
from areal_launcher.run_state import Progress, State, progress_of, state_of
from support.ui_runs import make_run


@pytest.mark.parametrize(
    ("summary", "state", "reason"),
    [
        ({"outcome": "succeeded"}, "succeeded", ""),
        ({"outcome": "failed", "error": "out of memory"}, "failed", "out of memory"),
        ({"outcome": 7}, "finished", ""),
    ],
)
def test_the_state_is_the_outcome_in_the_summary(
    tmp_path: Path, summary: dict[str, Any], state: str, reason: str
) -> None:
    assert state_of(make_run(tmp_path, "r", summary=summary)) == State(state, reason)


def test_a_run_with_a_launcher_is_running(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", summary={"outcome": "stopped"})
    lock = RunLock(run)
    assert state_of(run).name == "running"
    lock.release()
    assert state_of(run).name == "stopped"


def test_a_run_without_launcher_and_summary_was_interrupted(tmp_path: Path) -> None:
    assert state_of(make_run(tmp_path, "r")).name == "interrupted"


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '"text"'])
def test_a_damaged_summary_is_a_state_with_a_reason(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path, "r")
    names.summary_file(run).write_text(content)
    assert state_of(run).name == "damaged"
    assert "summary.json" in state_of(run).reason


def test_the_newest_step_is_found_without_reading_the_whole_file(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", steps=2000)
    with names.stats_file(run).open("a") as file:
        file.write('{"step": 2001, "ti')
    progress = progress_of(run)
    assert (progress.step, progress.reward, progress.total) == (2000, 1.0, 2000)


def test_a_run_without_statistics_has_no_progress(tmp_path: Path) -> None:
    assert progress_of(tmp_path) == Progress(None, None, None, None)
