"""CPU threads of the processes of a job, and its clocks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.controller import clocks, threads_per_process
from areal_launcher.places.slurm.job import job_dir, write_start
from areal_launcher.places.slurm.layout import Layout


def test_a_job_that_was_queued_again_continues_its_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir(tmp_path).mkdir()
    monkeypatch.setattr(commands, "find_job", lambda job_id: commands.Job("7", "RUNNING", "None", "n1", "n1", 30.0))
    assert clocks(tmp_path, "7") == (0.0, 30.0)
    write_start(tmp_path, "7", time.time() - 100)
    elapsed_s, waited_s = clocks(tmp_path, "7")
    assert 100 <= elapsed_s < 200
    assert waited_s == 0.0
    assert clocks(tmp_path, "8") == (0.0, 30.0)


def test_the_cpus_of_the_busiest_node_are_shared() -> None:
    assert threads_per_process([Layout(2, 0, 8, servers=(0, 1), trainer=(0,))]) == 4
    assert threads_per_process([Layout(1, 0, 1, servers=(0, 0), trainer=(0,))]) == 1
