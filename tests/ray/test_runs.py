"""``grpo run --on ray`` on a real cluster of three nodes, with real servers and a real trainer."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from areal_launcher import cli
from hack.testbed.ray_cluster import RayCluster
from support.ray_runs import END_S, STEP_S, RayRun

pytestmark = pytest.mark.scenario
FIRST, LAST = slice(0, 5), slice(-5, None)


def test_the_experiment_learns_on_two_nodes_although_server_trainer_and_node_are_killed(
    cluster: RayCluster, tmp_path: Path
) -> None:
    run = RayRun(cluster, tmp_path, "learns")
    launcher = run.start(steps=45)
    run.wait_for_step(4, launcher)
    assert run.node_of("trainer") != run.node_of("trainer-1")
    assert run.node_of("server-0") != run.node_of("server-1")

    run.kill("areal_server.launch", "--index 1")
    run.wait_until(lambda: "server-1 died" in run.console.read_text(), "dead server", launcher)
    run.send(signal.SIGSTOP, "areal_trainer.train")  # so that steps are left for what follows
    run.wait_until(lambda: run.server_states()["server-1"] == "ready", "new server", launcher)

    run.kill("areal_trainer.train")
    run.wait_until(lambda: "restart 1 of 10" in run.console.read_text(), "restarted trainer", launcher)
    run.wait_for_step(len(run.steps()) + 2, launcher)

    trainers = {run.node_of("trainer"), run.node_of("trainer-1")}
    victim = next(index for index in (1, 2) if cluster.host(index) in trainers)
    cluster.kill_node(victim)
    try:
        run.wait_until(lambda: "was lost with its node" in run.console.read_text(), "lost node", launcher)
        assert launcher.wait(END_S) == 0, run.output()
    finally:
        cluster.start_node(victim)
    steps = run.steps()
    assert [line["step"] for line in steps] == list(range(1, 46))
    rewards = [line["task_reward/avg"] for line in steps]
    assert sum(rewards[LAST]) > sum(rewards[FIRST]) + 0.5
    assert not run.processes()


def test_a_run_whose_driver_is_killed_leaves_nothing_and_continues_beside_another_run(
    cluster: RayCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = RayRun(cluster, tmp_path, "killed", servers=1, nodes=1)
    other = RayRun(cluster, tmp_path, "other", servers=1, nodes=1)
    launcher, beside = run.start(steps=1000), other.start(steps=6)
    run.wait_until(lambda: (run.directory / "recover" / "step3").is_dir(), "a checkpoint", launcher)
    assert cli.main(["status", str(run.directory), "--on", "ray"]) == 0
    assert "server-0" in capfd.readouterr().out
    assert cli.main(["status", str(run.directory), "--on", "ray", "--json"]) == 0
    assert [server["state"] for server in json.loads(capfd.readouterr().out)["servers"]] == ["ready"]
    launcher.kill()
    launcher.wait()
    run.wait_until(lambda: not run.processes(), "end of all its processes")
    steps = len(run.steps()) + 5
    successor = run.start(steps=steps)
    assert successor.wait(END_S) == 0, run.output()
    assert beside.wait(END_S) == 0, other.output()
    assert [line["step"] for line in run.steps()] == list(range(1, steps + 1))
    assert "resumed from" in (run.directory / "logs" / "trainer.log").read_text()
    assert [line["step"] for line in other.steps()] == list(range(1, 7))


def test_stop_ends_a_run_after_a_checkpoint_and_scale_changes_its_servers(cluster: RayCluster, tmp_path: Path) -> None:
    run = RayRun(cluster, tmp_path, "stopped", servers=1, nodes=1)
    launcher = run.start(steps=1000)
    run.wait_for_step(1, launcher)
    assert cli.main(["scale", str(run.directory), "2"]) == 0
    run.wait_until(lambda: run.server_states().get("server-1") == "ready", "second server", launcher)
    run.wait_until(lambda: run.steps()[-1]["rollout/servers_current"] == 2, "requests to it", launcher)
    assert cli.main(["stop", str(run.directory), "--on", "ray"]) == 0
    assert launcher.wait(STEP_S) == 128 + signal.SIGTERM, run.output()
    assert (run.directory / "recover" / f"step{len(run.steps())}").is_dir()
    assert not run.processes()
