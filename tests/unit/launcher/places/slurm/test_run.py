"""Following a job: what the end of a run is, from its journal and from Slurm."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from areal_launcher.core.journal import Journal
from areal_launcher.errors import RunError
from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm import run as run_module
from areal_launcher.places.slurm.commands import Job
from areal_launcher.places.slurm.job import SubmittedJob, job_dir, output_file, write_start
from areal_launcher.places.slurm.run import Follower
from support.local_runs import RecordingDisplay


def follow(run: Path, monkeypatch: pytest.MonkeyPatch, state: str | None, display: RecordingDisplay) -> int:
    job = None if state is None else Job("7", state, "None", "n[1-2]", "n1")
    monkeypatch.setattr(commands, "find_job", lambda job_id: job)
    return Follower(run, SubmittedJob("7"), 0).follow(display)


def test_the_journals_end_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, display = Journal(tmp_path), RecordingDisplay()
    journal.message("server-0 ready")
    journal.end(0)
    assert follow(tmp_path, monkeypatch, None, display) == 0  # slurmctld has forgotten the job
    assert follow(tmp_path, monkeypatch, "COMPLETED", display) == 0
    assert display.messages[0] == "server-0 ready"


def test_the_error_of_the_run_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(tmp_path).fail(RunError("the trainer failed with exit status 5", lines=["why"], status=5))
    with pytest.raises(RunError, match="the trainer failed with exit status 5") as failure:
        follow(tmp_path, monkeypatch, "FAILED", RecordingDisplay())
    assert (failure.value.status, failure.value.lines) == (5, ["why"])


def test_a_job_that_waits_too_long_for_its_first_start_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = Job("7", "PENDING", "Resources", "(null)", "n/a")
    cancelled: list[tuple[str, ...]] = []
    monkeypatch.setattr(commands, "find_job", lambda job_id: pending)
    monkeypatch.setattr(commands, "run", lambda *arguments: cancelled.append(arguments))
    long_ago = SubmittedJob("7", time.time() - 61)
    with pytest.raises(RunError, match=r"job 7 is cancelled: .* \(Resources\) .*preRunningDeadlineSeconds = 60"):
        Follower(tmp_path, long_ago, 0, pre_running_s=60).follow(RecordingDisplay())
    assert cancelled == [("scancel", "7")]


def test_a_job_that_was_queued_again_is_not_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([Job("7", "PENDING", "BeginTime", "(null)", "n/a"), None])
    monkeypatch.setattr(commands, "find_job", lambda job_id: next(states))
    monkeypatch.setattr(run_module, "ASK_S", 0.0)
    job_dir(tmp_path).mkdir()
    write_start(tmp_path, "7", time.time() - 61)
    Journal(tmp_path).end(0)
    assert Follower(tmp_path, SubmittedJob("7", time.time() - 61), 0, pre_running_s=60).follow(RecordingDisplay()) == 0


def test_a_job_that_reports_is_not_shown_as_waiting_until_slurm_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter([Job("7", "PENDING", "None", "(null)", "n/a"), None])
    monkeypatch.setattr(commands, "find_job", lambda job_id: next(states))
    monkeypatch.setattr(run_module, "ASK_S", 0.2)
    monkeypatch.setattr(run_module, "POLL_S", 0.05)
    journal = Journal(tmp_path)
    journal.phase("starting servers")
    journal.end(0)
    shown = RecordingDisplay()
    shown.phase = shown.message  # type: ignore[method-assign]  every call, not only the first of each text
    Follower(tmp_path, SubmittedJob("7"), 0).follow(shown)
    assert shown.messages == ["job 7 waits in the queue (None)", "starting servers"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("TIMEOUT", "job 7 ended as TIMEOUT, its time limit; run the same command to continue"),
        ("CANCELLED", "job 7 ended as CANCELLED; run the same command to continue"),
        ("FAILED", r"job 7 ended as FAILED before it could report anything: n1 may not see .*; set cluster.fileroot"),
    ],
)
def test_a_job_that_could_not_report_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        follow(tmp_path, monkeypatch, state, RecordingDisplay())


def test_a_killed_launcher_is_told_from_a_job_that_never_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir(tmp_path).mkdir()
    write_start(tmp_path, "7", time.time())
    Journal(tmp_path).message("training")
    with pytest.raises(RunError, match=r"FAILED: the launcher of the run was killed on n1; run the same command"):
        follow(tmp_path, monkeypatch, "FAILED", RecordingDisplay())


def test_the_output_of_a_failed_script_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_file(tmp_path).parent.mkdir()
    output_file(tmp_path).write_text("python: not found\n")
    with pytest.raises(RunError, match=r"job 7 ended as FAILED$") as failure:
        follow(tmp_path, monkeypatch, "FAILED", RecordingDisplay())
    assert failure.value.lines == ["python: not found"]
