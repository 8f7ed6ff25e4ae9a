"""``grpo run --on ray`` on a real cluster of three nodes, with fast stand-ins for servers and trainer."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import areal_server
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
    run.write(STEPS)
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


def test_the_check_and_a_refused_run_name_what_is_missing_and_hold_nothing(
    cluster: RayCluster, run: StandInRun
) -> None:
    resources = {"requests": {"cpu": 5}}
    trainer = {"nodes": 2, "device": "cpu", "resources": resources}
    missing = r"missing 10 CPUs: trainer needs 5 CPUs on one node; trainer-1 needs 5 CPUs .*127\.0\.1\.2 .*of 3"
    run.write(STEPS, None, trainer=trainer)
    status, output = run.grpo("check", "--on", "ray", str(run.file), "--address", cluster.address)
    assert status == 1
    assert re.search(f"has no room for it now: {missing}", output), output
    status, output = run.grpo("run", "--on", "ray", str(run.file), "--force")
    assert status == 1
    assert re.search(f"no room for the run: {missing}", output), output
    check_nothing_left(cluster, run)
    run.write(STEPS)
    status, output = run.grpo("check", "--on", "ray", str(run.file))
    assert f"the Ray cluster at {cluster.address} has room for it now" in output


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


def test_ctrl_c_while_a_run_waits_for_room_gives_up_its_place(cluster: RayCluster, run: StandInRun) -> None:
    launcher = run.start(steps=STEPS, servers={"replicas": 20, "device": "cpu"})
    run.wait_until(lambda: "waiting up to 600 s" in run.console.read_text(), "it waits", launcher)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(STEP_S) == 130, run.output()
    check_nothing_left(cluster, run)


def test_a_detached_run_that_waits_for_room_can_be_stopped(cluster: RayCluster, run: StandInRun) -> None:
    run.write(STEPS, servers={"replicas": 20, "device": "cpu"})
    status, output = run.grpo("run", "--on", "ray", str(run.file), "--detach")
    assert status == 0, output
    assert "waiting up to 600 s" in output
    assert run.grpo("stop", "--on", "ray", str(run.directory))[0] == 0
    run.wait_until(lambda: run.grpo("stop", str(run.directory))[0] == 2, "end of the driver")
    check_nothing_left(cluster, run)


@pytest.mark.parametrize("detach", [False, True])
def test_nothing_outlives_a_driver_that_is_killed_and_the_same_command_continues(
    cluster: RayCluster, run: StandInRun, detach: bool
) -> None:
    run.hold()
    launcher = run.start(steps=STEPS) if not detach else run.start("--detach", steps=STEPS)
    if detach:
        assert launcher.wait(STEP_S) == 0, run.output()
        launcher = run.run("--on", "ray", str(run.file))
        run.wait_until(lambda: "following the detached run" in run.console.read_text(), "follower", launcher)
    run.resume()
    run.wait_for_step(10, launcher)
    if detach:
        run.kill("ray.driver")
    else:
        launcher.kill()
    assert launcher.wait(STEP_S) == (1 if detach else -signal.SIGKILL), run.output()
    assert not detach or "the driver of the run was killed" in run.console.read_text()
    wait_until(lambda: not run.processes(), "all processes of the run have ended", deadline_s=STEP_S)
    wait_until(lambda: not left_behind(cluster), "its actors and placement groups are gone", deadline_s=STEP_S)
    steps = len(run.steps()) + 20
    successor = run.start(steps=steps)
    assert successor.wait(STEP_S) == 0, run.output()
    assert [line["step"] for line in run.steps()] == list(range(1, steps + 1))
    assert "starting after step 0" not in (run.directory / "logs" / "trainer.log").read_text().rpartition("---")[2]
    check_nothing_left(cluster, run)


def test_servers_and_trainer_move_when_their_raylet_is_killed(cluster: RayCluster, run: StandInRun) -> None:
    launcher = run.start(steps=STEPS)
    run.wait_for_step(3, launcher)
    victim = next(
        index for index in (1, 2) if cluster.host(index) in {run.node_of("trainer"), run.node_of("trainer-1")}
    )
    cluster.kill_node(victim)
    try:
        run.wait_until(lambda: "was lost with its node" in run.console.read_text(), "lost node", launcher)
        cluster.start_node(victim)  # the others have no room for two ranks and two servers
        run.wait_until(lambda: "the trainer failed" in run.console.read_text(), "restarted trainer", launcher)
        run.wait_for_step(len(run.steps()) + 10, launcher)
    finally:
        launcher.send_signal(signal.SIGINT)
    assert launcher.wait(STEP_S) == 130, run.output()
    check_nothing_left(cluster, run)


def test_a_run_starts_when_a_node_joins_late(cluster: RayCluster, run: StandInRun) -> None:
    cluster.kill_node(2)
    try:
        launcher = run.start(steps=20, servers={"replicas": 5, "device": "cpu"})
        run.wait_until(lambda: "waiting up to 600 s" in run.console.read_text(), "it waits", launcher)
    finally:
        cluster.start_node(2)
    assert launcher.wait(STEP_S) == 0, run.output()
    check_nothing_left(cluster, run)


def test_two_runs_share_the_cluster_and_skip_ports_that_are_taken(
    cluster: RayCluster, run: StandInRun, tmp_path: Path
) -> None:
    beside = StandInRun(cluster, tmp_path, "beside", servers=1, nodes=1)
    small = StandInRun(cluster, tmp_path, "small", servers=1, nodes=1)
    taken = listening_on_one_port([cluster.host(index) for index in range(3)])
    first = taken[0].getsockname()[1]
    beside.hold()
    try:
        one, two = beside.start("--port", str(first), steps=60), small.start("--port", str(first), steps=60)
        beside.wait_until(lambda: beside.server_states().get("server-0") == "ready", "ready server", one)
        ports = [int(address) for address in re.findall(r":(\d+) ", beside.grpo("status", str(beside.directory))[1])]
        assert len(ports) == 1
        assert all(first < port < first + 1000 for port in ports)
        beside.resume()
        assert (one.wait(STEP_S), two.wait(STEP_S)) == (0, 0), beside.output() + small.output()
    finally:
        for listening in taken:
            listening.close()
    for finished in (beside, small):
        check_nothing_left(cluster, finished)


def listening_on_one_port(hosts: Sequence[str]) -> list[socket.socket]:
    """A port that is free on all hosts, taken."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            found = [stack.enter_context(socket.create_server((hosts[0], 0)))]
            port = found[0].getsockname()[1]
            found += [stack.enter_context(socket.create_server((host, port))) for host in hosts[1:]]
            stack.pop_all()
            return found


def test_a_node_that_does_not_see_the_run_directory_or_has_other_code_is_named(
    cluster: RayCluster, run: StandInRun, tmp_path: Path
) -> None:
    packages = [folder for path in sys.path if (folder := Path(path) / "areal_server").is_dir()]
    other = tmp_path / "other"
    shutil.copytree(Path(areal_server.__file__).parent, other)
    (other / "launch.py").write_text("")
    run.write(STEPS, servers={"replicas": 7, "device": "cpu"}, trainer={"device": "cpu"})
    cases = [
        ([tmp_path], None, f"node {cluster.host(2)}: {run.directory} is not the directory that grpo sees"),
        (packages, None, f"node {cluster.host(2)}: Ray's interpreter .* lacks areal_server; install"),
        (packages, other, f"node {cluster.host(2)}: areal_server of Ray's interpreter .* differs"),
    ]
    try:
        for hidden, shown, message in cases:
            cluster.kill_node(2)
            cluster.start_node(2, hidden=hidden, shown=shown)
            status, output = run.grpo("run", "--on", "ray", str(run.file))
            assert status == 2, output
            assert re.search(message, output), output
            check_nothing_left(cluster, run)
    finally:
        cluster.kill_node(2)
        cluster.start_node(2)
