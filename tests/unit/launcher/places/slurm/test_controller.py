"""CPU threads of the processes of a job, and its clocks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from areal_launcher.core.journal import Journal
from areal_launcher.errors import RunError
from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.controller import MAX_IDLE_STARTS, clocks, requeue, threads_per_process
from areal_launcher.places.slurm.job import job_dir, write_start
from areal_launcher.places.slurm.layout import Layout
from support.local_runs import append, line


def test_a_job_that_was_queued_again_continues_its_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir(tmp_path).mkdir()
    monkeypatch.setattr(commands, "find_job", lambda job_id: commands.Job("7", "RUNNING", "None", "n1", "n1", 30.0))
    assert clocks(tmp_path, "7") == (0.0, 30.0)
    write_start(tmp_path, "7", time.time() - 100)
    elapsed_s, waited_s = clocks(tmp_path, "7")
    assert 100 <= elapsed_s < 200
    assert waited_s == 0.0
    assert clocks(tmp_path, "8") == (0.0, 30.0)


def test_a_job_that_never_finishes_a_step_is_not_queued_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir(tmp_path).mkdir()
    running = commands.Job("7", "RUNNING", "None", "n1", "n1")
    queued: list[tuple[str, ...]] = []
    monkeypatch.setattr(commands, "find_job", lambda job_id: running)
    monkeypatch.setattr(commands, "run", lambda *arguments: queued.append(arguments))
    append(tmp_path / "stats.jsonl", line(1))
    for _ in range(MAX_IDLE_STARTS):
        requeue(tmp_path, "7", Journal(tmp_path))
    with pytest.raises(RunError, match=r"started 5 times since step 1 .* raise its time limit \(--time\)"):
        requeue(tmp_path, "7", Journal(tmp_path))
    append(tmp_path / "stats.jsonl", line(2))
    requeue(tmp_path, "7", Journal(tmp_path))
    assert queued == [("scontrol", "requeue", "7")] * (MAX_IDLE_STARTS + 1)


def test_the_cpus_of_the_busiest_node_are_shared() -> None:
    assert threads_per_process([Layout(2, 0, 8, servers=(0, 1), trainer=(0,))]) == 4
    assert threads_per_process([Layout(1, 0, 1, servers=(0, 0), trainer=(0,))]) == 1
