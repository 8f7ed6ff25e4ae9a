"""What a run does on Slurm, with stand-in servers and trainer on a real cluster of three nodes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from hack.testbed.slurm_cluster import SlurmCluster, command_lines, wait_until
from support.slurm_runs import SlurmRun

MANY = [{"name": "STEPS", "value": "100000"}]


def test_servers_and_trainer_nodes_run_on_different_nodes_and_leave_nothing_behind(run: SlurmRun) -> None:
    status, output = run.finish(run.start())
    assert status == 0, output
    assert "succeeded" in output
    assert run.steps == list(range(1, 21))
    nodes = [re.search(r"serving \d+ (n\d)", run.log(name))[1] for name in ("server-0", "server-1")]  # type: ignore[index]
    ranks = [re.search(r"training on (n\d)", run.log(name))[1] for name in ("trainer", "trainer-1")]  # type: ignore[index]
    assert len(set(nodes)) == 2
    assert len(set(ranks)) == 2
    assert not run.processes("")
    assert not [job for job in run.cluster.jobs() if job.startswith(run.job)]
    assert not (run.directory / "api-key").exists()


def test_secrets_are_on_no_command_line_and_in_no_file_that_others_read(run: SlurmRun) -> None:
    run.hold()
    run.change("trainer", env=[{"name": "STEPS", "value": "20"}, {"name": "WANDB_API_KEY", "value": "hidden-key"}])
    run.start()
    run.wait_until_running()
    key = (run.directory / "api-key").read_text()
    shown = "\n".join(text for _, text in command_lines()) + run.cluster.command("scontrol", "show", "job", run.job)
    assert key not in shown
    assert "hidden-key" not in shown
    assert not [path for path in run.directory.rglob("*") if key in readable_text(path)]


def test_a_killed_server_restarts_alone_at_its_port(run: SlurmRun) -> None:
    run.hold()
    follower = run.start()
    run.wait_until_running()
    (server,) = run.processes("--index 1 ")
    port = run.serving(1)
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: len(run.serving(1)) == 2, "the server restarts")
    run.resume()
    status, output = run.finish(follower)
    assert status == 0, output
    assert "server-1 died (exit status 137); restart 1 of 5" in output
    assert run.serving(1) == port * 2
    assert len(run.serving(0)) == len(run.starts) == 1


def test_a_server_whose_port_was_taken_meanwhile_gets_another_that_the_trainer_learns(run: SlurmRun) -> None:
    run.hold()
    follower = run.start()
    wait_until(lambda: "starting after" in run.log("trainer"), "the trainer runs")
    addresses = run.directory / "server-addresses.json"
    before = json.loads(addresses.read_text())
    (server,) = run.processes("--index 0 ")
    (supervisor,) = run.python_processes(f"{run.directory}/slurm/server-0.json")
    (launcher,) = run.python_processes(f"slurm.controller {run.directory}")
    host, _, port = before[0].rpartition(":")
    with socket.socket() as stranger:
        os.kill(launcher, signal.SIGSTOP)  # or the next server could be quicker than the stranger
        os.kill(supervisor, signal.SIGKILL)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until(lambda: server not in run.processes("--index 0 "), "the server is gone")
        wait_until(lambda: binds(stranger, host, int(port)), "the server's port is free")
        stranger.listen()
        os.kill(launcher, signal.SIGCONT)
        wait_until(lambda: json.loads(addresses.read_text())[0] not in ("", before[0]), "the new address is published")
        assert json.loads(addresses.read_text())[1:] == before[1:]
    run.resume()
    assert run.finish(follower)[0] == 0


def binds(stranger: socket.socket, host: str, port: int) -> bool:
    """Bind the socket; False while the port is in use: a process disappears before the kernel closes its sockets."""
    try:
        stranger.bind((host, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def test_a_failed_trainer_continues_from_its_checkpoint_up_to_the_backoff_limit(run: SlurmRun) -> None:
    run.change("trainer", env=MANY)
    follower = run.start("runPolicy.backoffLimit=1")
    wait_until(lambda: len(run.steps) >= 7, "seven steps")
    (run.directory / "fail").touch()
    wait_until(lambda: len(run.starts) == 2, "the trainer restarts")
    assert run.starts[1] >= 5
    wait_until(lambda: run.steps[-1] > run.starts[1], "a further step")
    (run.directory / "fail").touch()
    status, output = run.finish(follower)
    assert status == 9, output
    assert "restart 1 of 1" in output
    assert "grpo: the trainer failed with exit status 9" in output
    assert not run.processes("")
    steps = run.steps[-1] + 5
    run.change("trainer", env=[{"name": "STEPS", "value": str(steps)}])
    again, output = run.finish(run.start("runPolicy.backoffLimit=1"))
    assert again == 0, output
    assert run.steps == list(range(1, steps + 1))


def test_a_follower_that_dies_is_replaced_by_the_same_command(run: SlurmRun) -> None:
    run.hold()
    follower = run.start()
    run.wait_until_running()
    follower.kill()
    job = run.job
    assert run.grpo("status", "--on", "slurm", str(run.directory))[1].count("RUNNING") == 1
    assert f"job {job}  grpo-words-trial0  RUNNING" in run.grpo("status", "--on", "slurm")[1]
    state = json.loads(run.grpo("status", "--on", "slurm", "--json", str(run.directory))[1])
    assert state["state"] == "running"
    assert [server["name"] for server in state["servers"]] == ["server-0", "server-1"]
    assert "training on" in run.grpo("logs", "--on", "slurm", str(run.directory), "trainer")[1]
    other = run.start("config.seed=8")
    assert "with another configuration" in run.finish(other)[1]
    status, output = run.finish(run.start("--detach"))
    assert (status, f"following job {job}" in output) == (0, True)
    second = run.start()
    run.resume()
    status, output = run.finish(second)
    assert status == 0, output
    assert len(run.starts) == 1


@pytest.mark.parametrize("options", [("--on", "slurm"), ()])
def test_stop_writes_a_checkpoint_and_the_same_command_continues(run: SlurmRun, options: tuple[str, ...]) -> None:
    """Without ``--on slurm`` the request reaches the job through the run directory."""
    run.change("trainer", env=MANY)
    follower = run.start()
    wait_until(lambda: len(run.steps) >= 3, "three steps")
    status, output = run.grpo("stop", *options, str(run.directory))
    assert status == 0, output
    status, output = run.finish(follower)
    assert status == 130, output
    assert "received 1 signals" in run.log("trainer")
    last = run.steps[-1]
    assert (run.directory / "recover" / f"step{last}").exists()
    following = run.start()
    wait_until(lambda: run.starts == [0, last], "the run continues")
    run.grpo("stop", "--on", "slurm", "--now", str(run.directory))
    status, output = run.finish(following)
    assert (status, "ended as CANCELLED; run the same command to continue" in output) == (1, True)
    wait_until(lambda: not run.processes(""), "every process is gone")


def test_a_killed_launcher_ends_the_job_and_the_same_command_continues(run: SlurmRun) -> None:
    run.hold()
    follower = run.start()
    run.wait_until_running()
    os.kill(run.the_process(run.python_processes, f"slurm.controller {run.directory}"), signal.SIGKILL)
    status, output = run.finish(follower)
    assert status == 1, output
    assert "ended as FAILED" in output
    wait_until(lambda: not run.processes(""), "every process is gone")
    run.resume()
    assert run.finish(run.start())[0] == 0


def test_servers_are_scaled_while_the_run_trains(run: SlurmRun) -> None:
    run.hold()
    follower = run.start()
    run.wait_until_running()
    assert run.grpo("scale", "--on", "slurm", str(run.directory), "3")[0] == 0
    wait_until(lambda: "serving" in run.log("server-2"), "a third server serves")
    addresses = run.directory / "server-addresses.json"
    wait_until(lambda: all(json.loads(addresses.read_text())), "its address is published")
    run.resume()
    assert run.finish(follower)[0] == 0


def test_two_runs_share_the_nodes(run: SlurmRun, cluster: SlurmCluster, tmp_path: Path) -> None:
    other = SlurmRun(cluster, tmp_path, "other")
    try:
        processes = [run.start(), other.start()]
        assert [run.finish(processes[0])[0], other.finish(processes[1])[0]] == [0, 0]
        assert run.steps == other.steps == list(range(1, 21))
    finally:
        other.end()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partition", "nope"], "slurm.partition: no partition nope; the cluster has "),
        (["slurm.servers={partition: nope}"], "slurm.servers.partition: no partition nope"),
        (["--partition", "short"], "partition short has a limit, 120 s"),
        (["--partition", "last"], "the run needs 3 nodes, partition last has 1"),
        (["--sbatch=--array=1-3"], "slurm.args: --array=1-3 is set by grpo"),
        (
            ["trainer.device=cuda", "trainer.processesPerNode=8", "config.train_dataset.batch_size=16"],
            "trainer.processesPerNode is 8, but a node has 4 GPUs",
        ),
        (["runPolicy.suspend=true"], "runPolicy.suspend is true"),
        (["slurm.nodes=4"], "the run needs 4 nodes, partition main has 3"),
        (["slurm.cpusPerNode=64"], "Requested node configuration is not available"),
        (["--constraint", "h100"], "slurm.constraint is h100: choose another --constraint"),
        (["--time", "soon"], "slurm.time is 'soon', which sbatch does not read"),
        (["--sbatch=--no-such-option"], "sbatch refuses the job: "),
        (["servers.device=cuda", "servers.tensorParallel=8"], "servers.tensorParallel is 8, but a node has 4 GPUs"),
    ],
)
def test_what_the_cluster_cannot_hold_is_one_error_and_nothing_is_queued(
    run: SlurmRun, arguments: list[str], message: str
) -> None:
    status, output = run.finish(run.start(*arguments))
    assert status == 2, output
    assert message in output
    assert "Traceback" not in output
    assert run.cluster.jobs() == []


def test_the_check_shows_the_layout_and_queues_nothing(run: SlurmRun) -> None:
    _, output = run.finish(run.start(command="check"))
    assert "server-0 on node " in output
    assert "trainer node 1 on node " in output
    assert re.search(r"sbatch --test-only: .*to start at", output), output
    cuda = ("servers.device=cuda", "trainer.device=cuda", "--gpu", "H100-80GB")
    assert "Compared with H100-80GB" in run.finish(run.start(*cuda, command="check"))[1]
    status, output = run.finish(run.start("runPolicy.suspend=true", command="check"))
    assert (status, "runPolicy.suspend is true" in output) == (2, True)
    status, output = run.finish(run.start("--partition", "nope", command="check"))
    assert status == 2
    assert "slurm.partition: no partition nope; the cluster has " in output
    assert run.cluster.jobs() == []


def test_steps_on_a_node_get_separate_gpus(run: SlurmRun) -> None:
    run.change("servers", device="cuda", tensorParallel=2, replicas=3)
    run.change("trainer", device="cuda", nodes=1, processesPerNode=2)
    run.change("slurm", nodes=2, cpusPerNode=2)
    status, output = run.finish(run.start())
    assert status == 0, output
    used: dict[str, list[str]] = {}
    for name in ("server-0", "server-1", "server-2", "trainer"):
        node, gpus = re.findall(r"(?:serving|gpus) .*?(n\d) ([\d,]+)", run.log(name))[0]
        used.setdefault(node, []).extend(gpus.split(","))
    assert {node: sorted(gpus) for node, gpus in used.items()} == {"n1": list("0123"), "n2": list("0123")}


def test_servers_in_a_component_of_their_own_have_its_partition_and_gpus(run: SlurmRun) -> None:
    run.change("servers", device="cuda", tensorParallel=2)
    apart = {"nodes": 1, "partition": "last", "constraint": "only-n3"}
    run.change("slurm", nodes=2, constraint="only-n1|only-n2", cpusPerNode=4, servers=apart)
    status, output = run.finish(run.start())
    assert status == 0, output
    ranks = [re.findall(r"gpus (n\d) (\S+)", run.log(name))[0] for name in ("trainer", "trainer-1")]
    assert len({node for node, _ in ranks}) == 2
    assert {gpus for _, gpus in ranks} <= {"None", "NoDevFiles"}
    servers = [re.findall(r"serving \d+ (n\d) (\S+)", run.log(name))[0] for name in ("server-0", "server-1")]
    assert sorted(servers) == [("n3", "0,1"), ("n3", "2,3")]
    wait_until(lambda: not [job for job in run.cluster.jobs() if job.startswith(run.job)], "the job is gone")


@pytest.mark.scenario
def test_a_server_of_another_component_restarts_once_its_step_has_ended(run: SlurmRun, cluster: SlurmCluster) -> None:
    """If its srun is killed, the step may run on. Each component of a heterogeneous job is a job with its steps."""
    apart = {"nodes": 1, "partition": "last", "constraint": "only-n3"}
    run.change("slurm", nodes=2, constraint="only-n1|only-n2", servers=apart)
    run.hold()
    follower = run.start()
    run.wait_until_running()
    for pid in run.processes_of("srun", "--job-name=server-1"):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(run.serving(1)) == 2, "the server restarts")
    steps = cluster.command("squeue", "--all", "--noheader", "--steps", "--format=%j").splitlines()
    assert sorted(steps) == ["batch", "server-0", "server-1", "trainer", "trainer-1"]
    run.resume()
    assert run.finish(follower)[0] == 0


def test_a_run_waits_for_room_and_is_cancelled_after_its_deadline(run: SlurmRun, cluster: SlurmCluster) -> None:
    options = ("--nodes=3", "--exclusive", "--job-name=full", f"--output={os.devnull}", "--time=10", "--wrap=sleep 600")
    cluster.command("sbatch", *options)
    try:
        wait_until(lambda: [job.split()[1] for job in cluster.jobs()] == ["RUNNING"], "the cluster is full")
        status, output = run.finish(run.start("runPolicy.preRunningDeadlineSeconds=5"))
        assert status == 1, output
        assert re.search(r"is cancelled: it waited in the queue \(\w+\)", output), output
        assert "runPolicy.preRunningDeadlineSeconds = 5" in output
        wait_until(lambda: len(cluster.jobs()) == 1, "only the job that fills the cluster is left")
        assert not run.log("trainer")
    finally:
        cluster.command("scancel", "--name=full")
        wait_until(lambda: not cluster.jobs(), "the cluster is empty")


def test_steps_run_in_a_container_at_a_path_with_spaces_quotes_and_percent_signs(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """With a stand-in for apptainer, which records its arguments and runs the command."""
    tool, odd = tmp_path / "bin" / "apptainer", tmp_path / "a 'b\" 100%j $HOME"
    odd.mkdir()
    tool.parent.mkdir()
    tool.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
while [ "$1" != image.sif ]; do shift; done
shift
exec "$@"
"""
    )
    tool.chmod(0o755)
    run = SlurmRun(cluster, odd)
    run.extra_environment["PATH"] = f"{tool.parent}:{os.environ['PATH']}"
    run.change("slurm", containerImage="image.sif", containerRuntime="apptainer", containerArgs=["--bind=/data"])
    run.change("trainer", env=[{"name": "STEPS", "value": "20"}, {"name": "LONG", "value": "x" * 16000}])
    try:
        status, output = run.finish(run.start())
        assert status == 0, output
        assert run.steps == list(range(1, 21))
        assert (run.directory / "logs" / "slurm-job.log").exists()
        calls = (tmp_path / "calls").read_text().splitlines()
        assert len(calls) == 4
        assert all(call.startswith(f"exec --bind={run.directory} --bind=/data image.sif ") for call in calls)
    finally:
        run.end()


def readable_text(path: Path) -> str:
    """Text of a file that other users can read; empty for other files, and for one that was removed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(errors="replace") if path.is_file() and path.stat().st_mode & 0o044 else ""
    return ""
