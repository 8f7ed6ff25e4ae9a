"""Addresses of nodes, and files that only their owner reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from areal_api.slurm import SlurmSpec
from areal_launcher.core.place import ProcessSpec
from areal_launcher.errors import RunError
from areal_launcher.places.slurm.place import contained, name_of, resolve, write_private


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
