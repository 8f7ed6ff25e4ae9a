"""Addresses of nodes, files that only their owner reads, and what the end of a step means."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from areal_api.slurm import SlurmSpec
from areal_launcher.core.place import ProcessSpec
from areal_launcher.errors import RunError
from areal_launcher.places.slurm import commands, place
from areal_launcher.places.slurm.layout import Layout
from areal_launcher.places.slurm.place import SlurmPlace, contained, name_of, resolve, write_private
from support.process_trees import wait_until


def test_addresses_are_resolved_and_an_unknown_one_names_its_node() -> None:
    assert resolve({"n1": "127.0.0.1", "n2": "10.0.0.7"})["n2"] == "10.0.0.7"
    with pytest.raises(RunError, match=r"node n3: its address no\.such\.host\.invalid cannot be resolved"):
        resolve({"n3": "no.such.host.invalid"})


def test_a_private_file_is_private_from_its_creation(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / "file").symlink_to(target)
    before = os.umask(0)
    try:
        write_private(tmp_path / "file", "secret")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert not target.exists()


def test_a_step_runs_in_its_container() -> None:
    inside, run = ["python3", "on_node.py"], Path("/shared/my run")
    assert contained(SlurmSpec(), inside, run=run, gpus=True) == inside
    pyxis = SlurmSpec(containerImage="nvcr.io#a/b:1", containerArgs=["--container-mounts=/data:/data"])
    assert contained(pyxis, inside, run=run, gpus=True) == [
        *("--container-image=nvcr.io#a/b:1", "--container-mounts=/shared/my run:/shared/my run"),
        *("--container-mounts=/data:/data", *inside),
    ]
    apptainer = SlurmSpec(containerImage="a.sif", containerRuntime="apptainer", containerArgs=["--bind=/data"])
    for gpus, nvidia in ((True, ["--nv"]), (False, [])):
        assert contained(apptainer, inside, run=run, gpus=gpus) == [
            *("apptainer", "exec", *nvidia, "--bind=/shared/my run", "--bind=/data", "a.sif", *inside)
        ]


@pytest.mark.parametrize(("role", "index"), [("server", 0), ("server", 3), ("trainer", 0), ("trainer", 1)])
def test_names_are_those_of_the_processes(tmp_path: Path, role: str, index: int) -> None:
    assert name_of(role, index) == ProcessSpec(role, index, [], {}, tmp_path).name  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmPlace]:
    """Job 7 on node n1 with a stand-in for srun. It runs and is not preempted, and its node answers."""
    monkeypatch.setattr(commands, "host_names", lambda hostlist: ["n1"])
    monkeypatch.setattr(commands, "node_addresses", lambda names: {"n1": "127.0.0.1"})
    monkeypatch.setattr(commands, "is_preempted", lambda job_id: False)
    monkeypatch.setattr(commands, "find_job", lambda job_id: commands.Job("7", "RUNNING", "None", "n1", "n1"))
    monkeypatch.setattr(commands, "run", lambda *arguments: "")
    monkeypatch.setattr(place, "ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(place, "NODE_GONE_S", 0.1)
    (tmp_path / "srun").write_text("#!/bin/sh\nread line\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    environ = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    opened = SlurmPlace(tmp_path / "run", SlurmSpec(), [Layout(1, 0, 1, servers=(0, 0))], environ=environ)
    yield opened
    opened.close()


def end_server(job: SlurmPlace, log: Path, index: int = 0) -> None:
    """Start a server and let it end."""
    step = job.start(ProcessSpec("server", index, ["serve"], {}, log))
    step.kill()
    wait_until(lambda: step.poll() is not None, "the step has ended")


def test_a_command_that_is_no_interpreter_is_started_by_one(job: SlurmPlace, tmp_path: Path) -> None:
    """The command of a trainer with code begins with a shell."""
    job.start(ProcessSpec("trainer", 0, ["/bin/sh", "-c", 'exec "$@"', "paths", "python"], {}, tmp_path / "log"))
    assert f" {sys.executable} -I -S " in (tmp_path / "log").read_text()


def test_slurm_is_asked_for_preemption_once_for_each_step_that_ended(
    job: SlurmPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, True]
    monkeypatch.setattr(commands, "is_preempted", lambda job_id: answers.pop(0))
    job.start(ProcessSpec("server", 1, ["serve"], {}, tmp_path / "log"))
    assert job.ending() is None
    assert len(answers) == 2
    end_server(job, tmp_path / "log")
    assert [job.ending() for _ in range(3)] == [None] * 3
    assert answers == [True]
    end_server(job, tmp_path / "log")
    assert job.ending() == job.ending() == "job 7 is preempted"


def test_a_node_that_starts_no_step_is_lost_unless_it_does_soon(
    job: SlurmPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 2

    def srun(*arguments: str) -> str:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise commands.SlurmError("Task launch failed on node n1")
        return ""

    monkeypatch.setattr(commands, "run", srun)
    end_server(job, tmp_path / "log")
    assert job.ending() is None
    failures = 1000
    end_server(job, tmp_path / "log")
    assert job.ending() == "job 7 has lost a node (Task launch failed on node n1)"


def test_an_end_stays_unexplained_if_slurmctld_is_down_or_ends_the_job(
    job: SlurmPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: str) -> str:
        raise commands.SlurmError("Unable to contact slurm controller")

    monkeypatch.setattr(commands, "run", fail)
    monkeypatch.setattr(commands, "find_job", lambda job_id: commands.Job("7", "COMPLETING", "None", "n1", "n1"))
    end_server(job, tmp_path / "log")
    assert job.ending() is None
    monkeypatch.setattr(commands, "is_preempted", fail)
    end_server(job, tmp_path / "log")
    assert job.ending() is None
