"""``grpo run --on ray`` on a real cluster of three nodes, with fast stand-ins for servers and trainer."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.testbed.ray_cluster import RayCluster
from support.process_trees import wait_until
from support.ray_runs import STEP_S, StandInRun, left_behind

pytestmark = pytest.mark.scenario
STEPS = 100_000  # a run that is ended by the test


@pytest.fixture
def run(cluster: RayCluster, tmp_path: Path) -> Iterator[StandInRun]:
    started = StandInRun(cluster, tmp_path, "run")
    yield started
    if started.directory.exists():
        started.grpo("stop", "--now", str(started.directory))


def check_nothing_left(cluster: RayCluster, run: StandInRun) -> None:
    wait_until(lambda: not run.processes(), "all processes of the run have ended", deadline_s=STEP_S)
    wait_until(lambda: not left_behind(cluster), "its actors and placement groups are gone", deadline_s=STEP_S)
    assert not (run.directory / "api-key").exists()
    assert not list(run.directory.glob(".probe*"))


def test_a_detached_run_is_followed_asked_scaled_and_stopped(cluster: RayCluster, run: StandInRun) -> None:
    run.write(STEPS, wait_s=600)
    status, output = run.grpo("run", "--on", "ray", str(run.file), "--detach")
    assert status == 0, output
    assert "the same command without --detach follows it" in output

    follower = run.run("--on", "ray", str(run.file))
    run.wait_for_step(5, follower)
    run.wait_until(lambda: "server-1 ready" in run.console.read_text(), "messages of the driver", follower)
    follower.kill()
    follower.wait()
    again = run.run("--on", "ray", str(run.file))
    run.wait_for_step(len(run.steps()) + 5, again)

    assert run.grpo("scale", "--on", "ray", str(run.directory), "3")[0] == 0
    run.wait_until(lambda: run.server_states().get("server-2") == "ready", "a third server", again)
    status, output = run.grpo("status", "--on", "ray", str(run.directory))
    assert status == 0
    assert re.search(r"server-2 +127\.0\.1\.\d:\d+ +ready", output), output
    assert "training on" in run.grpo("logs", "--on", "ray", str(run.directory), "trainer")[1]
    status, output = run.grpo("run", "--on", "ray", str(run.file), "servers.replicas=1")
    assert status == 2
    assert "a detached run uses" in output

    assert run.grpo("stop", "--on", "ray", str(run.directory))[0] == 0
    assert again.wait(STEP_S) == 128 + signal.SIGTERM, run.output()
    assert (run.directory / "recover" / f"step{len(run.steps())}").is_dir()
    check_nothing_left(cluster, run)


def test_another_version_of_ray_is_named(cluster: RayCluster, run: StandInRun) -> None:
    run.write(STEPS)
    other = (
        "import sys, ray; ray.__version__ = '2.1.0'\nfrom areal_launcher import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", other, "check", "--on", "ray", str(run.file)],
        env=run.environment,
        capture_output=True,
        text=True,
        timeout=STEP_S,
        check=False,
    )
    assert done.returncode == 2
    assert "has another version of Ray or Python than this environment" in done.stderr
    assert "Ray: 2.1.0" in done.stderr


def test_ctrl_c_ends_a_run_after_a_checkpoint(cluster: RayCluster, run: StandInRun) -> None:
    launcher = run.start(steps=STEPS)
    run.wait_for_step(3, launcher)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(STEP_S) == 130, run.output()
    assert (run.directory / "recover" / f"step{len(run.steps())}").is_dir()
    check_nothing_left(cluster, run)


def test_nothing_outlives_a_driver_that_is_killed_and_the_same_command_continues(
    cluster: RayCluster, run: StandInRun
) -> None:
    launcher = run.start(steps=60)
    run.wait_for_step(10, launcher)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not run.processes(), "all processes of the run have ended", deadline_s=STEP_S)
    wait_until(lambda: not left_behind(cluster), "its actors and placement groups are gone", deadline_s=STEP_S)
    successor = run.run("--on", "ray", str(run.file))
    assert successor.wait(STEP_S) == 0, run.output()
    assert [line["step"] for line in run.steps()] == list(range(1, 61))
    assert "starting after step 0" not in (run.directory / "logs" / "trainer.log").read_text().rpartition("---")[2]
    check_nothing_left(cluster, run)
