"""What is refused before a job is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.commands import Partition
from areal_launcher.places.slurm.submit import advice, partition_named, plan_job
from support.local_runs import load


def test_devices_that_the_partition_does_not_have_are_refused(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "partitions", lambda name: [Partition("cpu", 4, 0)])
    with pytest.raises(ValueError, match=r"servers.device is cuda, but no node of partition cpu .* has a GPU"):
        plan_job(load(experiment_path, "servers.device=cuda"))
    with pytest.raises(ValueError, match="the run needs 5 nodes, partition cpu has 4"):
        plan_job(load(experiment_path, "slurm.nodes=5"))


def test_a_cluster_without_a_default_partition_names_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "partitions", lambda name: [])
    monkeypatch.setattr(commands, "run", lambda *arguments: "gpu\ncpu\ngpu\n")
    with pytest.raises(ValueError, match="no default partition; give --partition: cpu, gpu"):
        partition_named(None)


def test_refusals_of_sbatch_come_with_the_option_to_change() -> None:
    assert "--account" in advice("Invalid account or account/partition combination specified")
    assert advice("Socket timed out") == ""
