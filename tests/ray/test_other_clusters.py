"""``grpo run --on ray`` on other clusters: one address for all nodes, a head without CPUs, Ray's jobs, autoscaling."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hack.testbed.ray_cluster import RayCluster, name_of
from support.process_trees import wait_until
from support.ray_runs import GRPO, ROOT, STEP_S, StandInRun, left_behind

pytestmark = pytest.mark.scenario
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def one_host() -> Iterator[RayCluster]:
    """Three nodes at one address; the head declares no CPUs and takes jobs."""
    with RayCluster(cpus=3, head_cpus=0, one_address=True, dashboard=True) as cluster:
        yield cluster


def ray_job(cluster: RayCluster, *arguments: str) -> str:
    """Run ``ray job``, again while the cluster's agents are still starting; its output."""
    deadline = time.monotonic() + STEP_S
    while True:
        done = subprocess.run(
            [RAY, "job", *arguments],
            env=cluster.environment() | {"RAY_ADDRESS": cluster.dashboard},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=STEP_S,
            check=False,
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout


def raylets(cluster: RayCluster) -> list[psutil.Process]:
    return [process for process in cluster.processes() if name_of(process) == "raylet"]


def test_nodes_may_share_an_address_and_the_head_needs_no_cpus(one_host: RayCluster, tmp_path: Path) -> None:
    run = StandInRun(one_host, tmp_path, "shared")
    launcher = run.start(steps=20)
    assert launcher.wait(STEP_S) == 0, run.output()
    assert not run.processes()
    wait_until(lambda: not left_behind(one_host), "nothing is left", deadline_s=STEP_S)


def test_a_run_can_be_a_job_of_ray(one_host: RayCluster, tmp_path: Path) -> None:
    run = StandInRun(one_host, tmp_path, "job")
    run.write(20)
    output = ray_job(one_host, "submit", "--", *GRPO, "run", "--on", "ray", str(run.file))
    assert "succeeded" in output.lower()
    assert [line["step"] for line in run.steps()] == list(range(1, 21))


def test_a_job_of_ray_that_is_stopped_leaves_nothing(one_host: RayCluster, tmp_path: Path) -> None:
    run = StandInRun(one_host, tmp_path, "stopped")
    run.write(100_000)
    submission = ["--submission-id", "stopped", "--no-wait"]
    ray_job(one_host, "submit", *submission, "--", *GRPO, "run", "--on", "ray", str(run.file))
    run.wait_for_step(5, None)
    ray_job(one_host, "stop", "stopped")
    wait_until(lambda: not run.processes(), "its processes have ended", deadline_s=STEP_S)
    wait_until(lambda: not left_behind(one_host), "nothing is left", deadline_s=STEP_S)


def test_an_autoscaler_adds_nodes_for_a_run_that_waits(tmp_path: Path) -> None:
    with RayCluster(1, cpus=3, head_cpus=0, autoscaled=2) as cluster:
        run = StandInRun(cluster, tmp_path, "scaled", servers=1, nodes=1)
        launcher = run.start(steps=20)
        assert launcher.wait(STEP_S) == 0, run.output()
        assert len(raylets(cluster)) > 1
        wait_until(lambda: not left_behind(cluster), "nothing is left", deadline_s=STEP_S)
