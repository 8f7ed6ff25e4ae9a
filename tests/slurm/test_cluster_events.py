"""What a cluster does to a run: directories that are not shared, time limits, preemption, lost nodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hack.testbed.slurm_cluster import SlurmCluster, slurm_cluster, wait_until
from support.slurm_runs import SlurmRun

MANY = [{"name": "STEPS", "value": "100000"}]
TIME_LIMIT = "3"  # minutes; Slurm may warn up to one minute early


@pytest.mark.parametrize("node", ["n3", "n1"])
def test_a_directory_that_is_not_shared_is_one_error_and_nothing_is_placed(
    run: SlurmRun, cluster: SlurmCluster, tmp_path: Path, node: str
) -> None:
    """The last node is found by the probe on every node, the first by the batch script."""
    runs = tmp_path / "runs"
    runs.mkdir()
    cluster.restart_node(node, hidden=runs)
    try:
        status, output = run.finish(run.start())
        assert status == 1, output
        assert "cluster.fileroot" in output
        assert "share" in output.splitlines()[-1]
        assert node in output
        assert not run.log("server-0")
        wait_until(lambda: not cluster.jobs(), "the job is gone")
    finally:
        cluster.restart_node(node)


@pytest.mark.scenario
def test_at_the_time_limit_the_run_writes_a_checkpoint_and_continues_in_the_queue(run: SlurmRun) -> None:
    run.change("trainer", env=MANY)
    follower = run.start("--time", TIME_LIMIT, "slurm.stopSeconds=30")
    wait_until(lambda: "is queued again" in run.journal, "the job is queued again")
    assert "received 1 signals" in run.log("trainer")
    last = run.steps[-1]
    assert (run.directory / "recover" / f"step{last}").exists()
    wait_until(lambda: run.starts == [0, last], "the run continues")
    run.grpo("stop", "--on", "slurm", str(run.directory))
    assert run.finish(follower)[0] == 130


@pytest.mark.scenario
def test_a_run_without_requeue_ends_at_the_time_limit_and_the_same_command_continues(run: SlurmRun) -> None:
    run.change("trainer", env=MANY)
    command = ("--time", TIME_LIMIT, "slurm.stopSeconds=30", "slurm.requeue=false")
    status, output = run.finish(run.start(*command))
    assert status == 143, output
    last = run.steps[-1]
    follower = run.start(*command)
    wait_until(lambda: run.starts == [0, last], "the run continues")
    run.grpo("stop", "--on", "slurm", "--now", str(run.directory))
    assert run.finish(follower)[0] == 1


@pytest.mark.scenario
def test_a_preempted_run_writes_a_checkpoint_and_continues_later(run: SlurmRun, cluster: SlurmCluster) -> None:
    run.change("trainer", env=MANY)
    follower = run.start()
    wait_until(lambda: len(run.steps) >= 3, "three steps")
    script = "#!/bin/sh\nsleep 5\n"
    (run.directory.parent / "urgent.sh").write_text(script)
    urgent = ("--partition=urgent", "--nodes=3", "--exclusive", f"--output={os.devnull}")
    cluster.command("sbatch", *urgent, str(run.directory.parent / "urgent.sh"))
    wait_until(lambda: "is queued again" in run.journal, "the job is queued again")
    assert "received" in run.log("trainer")
    assert f"job {run.job} is preempted; the run ends" in run.journal
    assert "died" not in run.journal
    wait_until(lambda: len(run.starts) == len(run.serving(0)) == 2, "the run continues")
    assert (run.directory / "recover" / f"step{run.starts[1]}").exists()
    run.grpo("stop", "--on", "slurm", "--now", str(run.directory))
    run.finish(follower)


@pytest.mark.scenario
@pytest.mark.parametrize("node", ["n2", "n1"])
def test_a_lost_node_puts_the_run_back_into_the_queue(run: SlurmRun, cluster: SlurmCluster, node: str) -> None:
    """``n1`` also runs the launcher of the run."""
    run.change("trainer", env=MANY)
    follower = run.start("slurm.nodes=2")
    wait_until(lambda: len(run.steps) >= 6, "six steps")
    cluster.kill_node(node)
    try:
        wait_until(lambda: len(run.starts) == 2, "the run continues on the other nodes")
        assert run.starts[1] >= 5
        for name in ("trainer", "trainer-1"):
            wait_until(lambda name=name: len(run.nodes_of(name)) == 2, f"{name} has started again")
            assert run.nodes_of(name)[1] != node
        run.grpo("stop", "--on", "slurm", "--now", str(run.directory))
        run.finish(follower)
    finally:
        cluster.restart_node(node)


@pytest.mark.scenario
def test_a_lost_node_that_slurm_has_not_noticed_yet_puts_the_run_back_into_the_queue(
    cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Slurm notices after SlurmdTimeout, by default five minutes. A trainer that cannot restart would fail before."""
    with slurm_cluster(tmp_path_factory.mktemp("patient"), nodes=3, node_timeout_s=300) as patient:
        run = SlurmRun(patient, tmp_path)
        run.change("trainer", env=MANY)
        follower = run.start()
        try:
            wait_until(lambda: len(run.steps) >= 6, "six steps")
            patient.kill_node("n2")
            (run.directory / "fail").touch()  # as a rank does that has lost another
            wait_until(lambda: "is queued again" in run.journal, "the job is queued again")
            assert f"job {run.job} has lost a node" in run.journal
            assert "the trainer failed" not in run.journal
            patient.restart_node("n2")
            wait_until(lambda: len(run.starts) == 2, "the run continues")
            run.grpo("stop", "--on", "slurm", "--now", str(run.directory))
            run.finish(follower)
        finally:
            run.end()
