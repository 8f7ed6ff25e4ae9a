"""`grpo status` and `grpo stop` of runs without a job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from areal_launcher.places.slurm.commands import Job
from areal_launcher.places.slurm.inspect_run import describe, state_with_job, status, stop
from areal_launcher.places.slurm.job import job_dir, write_start
from areal_launcher.run_files import RunLock
from support.ui_runs import make_run


def test_a_job_is_one_line() -> None:
    waiting = ["7", "PENDING", "0:00", "1:00", "2", "grpo-tiny-trial0", "Resources"]
    assert describe(waiting) == "job 7  grpo-tiny-trial0  PENDING (Resources)  0:00 of 1:00  2 nodes"
    running = ["7", "RUNNING", "0:01", "1:00", "1", "grpo-tiny-trial0", "None"]
    assert describe(running) == "job 7  grpo-tiny-trial0  RUNNING  0:01 of 1:00  1 node"


def test_a_directory_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no job of Slurm was submitted"):
        status(tmp_path)
    with pytest.raises(ValueError, match="no job of this run is queued or runs"):
        stop(tmp_path, now=False)


def job(state: str) -> Job:
    return Job("7", state, "Resources", "(null)", "")


@pytest.mark.parametrize(
    ("found", "state", "message"),
    [
        (job("PENDING"), "pending", r"waits in the queue \(Resources\)"),
        (job("RUNNING"), "pending", "the job starts"),
        (job("FAILED"), "failed", "the job ended as FAILED before it could report"),
        (None, "failed", "the job has ended before it could report"),
    ],
)
def test_a_job_that_has_not_reported_yet_has_the_state_of_the_queue(
    tmp_path: Path, found: Job | None, state: str, message: str
) -> None:
    shown = state_with_job(tmp_path, found)
    assert shown.name == state
    assert re.search(message, shown.reason)


def test_a_job_that_has_reported_has_the_state_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", summary={"outcome": "succeeded"})
    assert state_with_job(run, None).name == "succeeded"
    assert state_with_job(run, job("RUNNING")).name == "pending"  # a new job for the same run
    assert state_with_job(run, job("REQUEUED")).name == "pending"
    job_dir(run).mkdir()
    summary = run / "summary.json"
    write_start(run, "7", summary.stat().st_mtime + 1)
    assert state_with_job(run, job("RUNNING")).name == "pending"  # the summary is that of the job before
    write_start(run, "7", summary.stat().st_mtime - 1)
    assert state_with_job(run, job("RUNNING")).name == "succeeded"  # Slurm has not ended the job yet
    lock = RunLock(run)
    assert state_with_job(run, job("RUNNING")).name == "running"
    lock.release()
