"""`grpo status` and `grpo stop` of runs without a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.places.slurm.inspect_run import describe, status, stop


def test_a_job_is_one_line() -> None:
    waiting = ["7", "PENDING", "0:00", "1:00", "2", "grpo-tiny-trial0", "Resources"]
    assert describe(waiting) == "job 7  grpo-tiny-trial0  PENDING (Resources)  0:00 of 1:00  2 nodes"


def test_a_directory_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no job of Slurm was submitted"):
        status(tmp_path)
    with pytest.raises(ValueError, match="no job of this run is queued or runs"):
        stop(tmp_path, now=False)
