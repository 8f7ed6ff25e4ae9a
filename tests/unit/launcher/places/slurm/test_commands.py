"""Reading what Slurm's commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.commands import Job, Partition, SlurmError, find_job, partitions


@pytest.fixture
def printing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put commands on PATH that print a text, or fail with one."""

    def install(tool: str, text: str, status: int = 0) -> None:
        (tmp_path / f"{tool}.txt").write_text(text)
        where = ">&2" if status else ""
        (tmp_path / tool).write_text(f"#!/bin/sh\ncat {tmp_path}/{tool}.txt {where}\nexit {status}\n")
        (tmp_path / tool).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return install


def test_a_job_has_state_reason_and_nodes(printing) -> None:
    printing(
        "scontrol",
        "JobId=7 JobName=a b=c JobState=RUNNING Reason=None BatchHost=n1 NodeList=n[1-2]\n",
    )
    assert find_job("7") == Job("7", "RUNNING", "None", "n[1-2]", "n1")
    printing("scontrol", "slurm_load_jobs error: Invalid job id specified\n", 1)
    assert find_job("7") is None
    printing("scontrol", "scontrol: error: Unable to contact slurm controller\n", 1)
    with pytest.raises(SlurmError, match=r"^Unable to contact slurm controller$"):
        find_job("7")


def test_a_partition_counts_the_nodes_that_can_run_jobs_and_their_gpus(printing) -> None:
    printing(
        "sinfo",
        "gpu*|3|gpu:h100:8(S:0-1)|idle\ngpu*|2|gpu:h100:16|down*\ncpu|4|(null)|mix\ngpu*|1|gpu:a:2,gpu:b:2|alloc\n",
    )
    assert partitions(None) == [Partition("gpu", 4, 8)]
    assert partitions("cpu")[1] == Partition("cpu", 4, 0)


def test_a_missing_command_names_where_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="sbatch is not installed here; run grpo --on slurm on a login node"):
        commands.run("sbatch")
