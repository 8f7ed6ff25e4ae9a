"""Reading what Slurm's commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.commands import (
    Job,
    Partition,
    SlurmError,
    find_job,
    is_preempted,
    partitions,
    time_limit_s,
)


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
    started = "2026-01-01T10:00:00|2026-01-01T10:00:05"
    printing("squeue", f"7|RUNNING|n1|n[1-2]|{started}|None\n")
    assert find_job("7") == Job("7", "RUNNING", "None", "n[1-2]", "n1", 5.0)
    printing("squeue", "7|PENDING|n/a||2026-01-01T10:00:00|N/A|ReqNodeNotAvail, UnavailableNodes:n|1\n")
    assert find_job("7") == Job("7", "PENDING", "ReqNodeNotAvail, UnavailableNodes:n|1", "(null)", "n/a")
    printing("squeue", f"7+1|PENDING|n/a||{started}|None\n7+0|RUNNING|n1|n1|{started}|None\n")
    found = find_job("7")
    assert found is not None
    assert found.state == "RUNNING"
    printing("squeue", "slurm_load_jobs error: Invalid job id specified\n", 1)
    assert find_job("7") is None
    printing("squeue", "squeue: error: Unable to contact slurm controller\n", 1)
    with pytest.raises(SlurmError, match=r"^Unable to contact slurm controller$"):
        find_job("7")


def test_a_job_is_preempted_if_slurm_has_told_any_component_of_it(printing) -> None:
    printing("squeue", f"{'N/A':32}\n{'N/A':32}\n")
    assert not is_preempted("7")
    printing("squeue", f"{'N/A':32}\n{'2026-01-01T10:00:00':32}\n")
    assert is_preempted("7")


def test_a_partition_counts_the_nodes_that_can_run_jobs_and_their_gpus(printing) -> None:
    unusable = ("down*", "idle*", "drain", "drng", "inval", "futr")
    rows = [
        *["gpu*|gpu:h100:8(S:0-1)|idle|infinite|n/a|64"] * 2,
        *(f"gpu*|gpu:h100:16|{state}|infinite|n/a|256" for state in unusable),
        *(f"gpu*|gpu:a:2,gpu:b:2|{state}|infinite|n/a|32" for state in ("alloc", "mix-", "idle~", "resv", "maint$")),
        "cpu|(null)|mix|2-00:00:00|30:00|?",
        "broken line",
    ]
    printing("sinfo", "\n".join(rows) + "\n")
    assert partitions(None) == [Partition("gpu", 7, 8, None, 64)]
    assert partitions("cpu,nope") == [Partition("cpu", 1, 0, 1800.0)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400.0),
        ("10:30", 630.0),
        ("1:30:00", 5400.0),
        ("2-12", 216000.0),
        ("1-00:30", 88200.0),
        ("1-01:01:01", 90061.0),
        ("UNLIMITED", None),
        ("infinite", None),
        ("soon", None),
        ("", None),
    ],
)
def test_limits_are_read_as_sbatch_does(text: str, seconds: float | None) -> None:
    assert time_limit_s(text) == seconds


def test_options_in_the_environment_do_not_change_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    dropped = ("SQUEUE_STATES", "SLURM_TIME_FORMAT", "SLURM_JOB_ID", "SLURM_CLUSTERS", "SBATCH_ARRAY_INX")
    kept = ("SLURM_CONF", "SBATCH_ACCOUNT", "UNRELATED")
    for name in (*dropped, *kept):
        monkeypatch.setenv(name, "1")
    printed = {line.partition("=")[0] for line in commands.run("squeue").splitlines()}
    assert not printed & set(dropped)
    assert printed >= set(kept)


def test_a_missing_command_names_where_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="sbatch is not installed here; run grpo --on slurm on a login node"):
        commands.run("sbatch")
