"""What is refused before a job is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_api.slurm import SlurmSpec
from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.commands import Partition
from areal_launcher.places.slurm.submit import advice, check_container, partition_named, plan_job
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


def test_gpus_need_a_cluster_that_gives_them_to_steps(experiment_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "partitions", lambda name: [Partition("gpu", 4, 8)])
    config = "SchedulerType           = sched/backfill\nSelectType              = select/{}\nSelectTypeParameters = x\n"
    monkeypatch.setattr(commands, "run", lambda *arguments: config.format("cons_tres"))
    assert plan_job(load(experiment_path, "servers.device=cuda"))
    monkeypatch.setattr(commands, "run", lambda *arguments: config.format("linear"))
    with pytest.raises(ValueError, match="SelectType=select/linear"):
        plan_job(load(experiment_path, "servers.device=cuda"))
    assert plan_job(load(experiment_path))


def test_a_time_limit_without_time_to_train_is_refused(experiment_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = Partition("short", 4, 0, 120.0)
    monkeypatch.setattr(commands, "partitions", lambda name: [limited])
    with pytest.raises(ValueError, match=r"partition short has a limit, 120 s.*raise --time, or lower slurm.stopSec"):
        plan_job(load(experiment_path))
    with pytest.raises(ValueError, match=r"slurm.time is 3, 180 s.*slurm.stopSeconds = 150 s"):
        plan_job(load(experiment_path, "slurm.time='3'"))
    assert plan_job(load(experiment_path, "slurm.time='4'"))
    assert plan_job(load(experiment_path, "slurm.stopSeconds=30"))


def test_of_several_partitions_the_layout_fits_each(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [Partition("a", 4, 8, None, 64), Partition("b", 2, 4, 60.0, 32), Partition("c", 1, 0)]
    monkeypatch.setattr(commands, "partitions", lambda name: both if name == "a,b,c" else [])
    assert partition_named("a,b,c") == Partition("a,b,c", 4, 4, 60.0, 32)
    monkeypatch.setenv("SBATCH_PARTITION", "a,b,c")
    assert partition_named(None).gpus == 4


def test_no_more_cpus_are_requested_than_a_node_has(experiment_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "partitions", lambda name: [Partition("gpu", 4, 8, None, 12)])
    monkeypatch.setattr(commands, "select_type", lambda: "select/cons_tres")
    devices = ("servers.device=cuda", "servers.replicas=2", "servers.tensorParallel=4", "slurm.nodes=1")
    assert [layout.cpus_per_node for layout in plan_job(load(experiment_path, *devices))] == [12]
    explicit = load(experiment_path, *devices, "slurm.cpusPerNode=20")
    assert [layout.cpus_per_node for layout in plan_job(explicit)] == [20]


@pytest.mark.parametrize("folder", ["a:b", "a,b"])
def test_a_run_directory_that_cannot_be_mounted_is_refused(experiment_path: Path, folder: str) -> None:
    check_container(load(experiment_path).spec, Path(f"/shared/{folder}"))
    with pytest.raises(ValueError, match=r"cluster.fileroot: .* a colon or a comma"):
        check_container(load(experiment_path, "slurm.containerImage=image").spec, Path(f"/shared/{folder}"))


def test_arguments_of_a_container_need_an_image(experiment_path: Path) -> None:
    with pytest.raises(ValueError, match=r"slurm.containerArgs is set without slurm.containerImage"):
        check_container(load(experiment_path, "slurm.containerArgs=[--nv]").spec, Path("/shared"))


def test_packages_are_not_installed_for_a_container(experiment_path: Path) -> None:
    with pytest.raises(ValueError, match=r"code.requirements is set together with slurm.containerImage"):
        check_container(
            load(experiment_path, "slurm.containerImage=image", "code.requirements=[a]").spec, Path("/shared")
        )


def test_refusals_of_sbatch_come_with_the_option_to_change() -> None:
    slurm = SlurmSpec(account="physics", constraint="h100")
    refusal = advice("Invalid account or account/partition combination specified", slurm)
    assert "slurm.account is physics: choose another --account" in refusal
    assert "slurm.constraint is h100" in advice("Invalid feature specification", slurm)
    assert advice("Socket timed out", slurm) == ""


def test_a_time_limit_that_sbatch_cannot_read_is_refused(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "partitions", lambda name: [Partition("cpu", 4, 0)])
    with pytest.raises(ValueError, match=r"slurm.time is 'soon', which sbatch does not read; write --time as minutes"):
        plan_job(load(experiment_path, "slurm.time=soon"))
    assert plan_job(load(experiment_path, "slurm.time=UNLIMITED"))
