"""Commands beside ``grpo run --on kubernetes`` and refused requests, on a real API server; nodes are simulated."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from areal_launcher import cli
from areal_launcher.client import Experiment as Client
from hack.testbed.fake_kubelet import end, hang, run
from hack.testbed.kube_api import eventually
from hack.testbed.operator_process import OperatorProcess
from support.grpo_on_kubernetes import Grpo
from support.node_logs import NodeLogs


def test_servers_are_scaled_up_to_their_limit(grpo: Grpo, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scale", "exp", "2", *grpo.place]) == 2
    assert "exp: no such experiment" in capfd.readouterr().err
    grpo.write(servers__replicas=1, servers__maxReplicas=3)
    assert grpo.run("--detach") == 0
    assert cli.main(["scale", "exp", "3", *grpo.place]) == 0
    assert (grpo.experiment.get() or {})["spec"]["servers"]["replicas"] == 3
    assert cli.main(["scale", "exp", "4", *grpo.place]) == 1
    assert "servers.maxReplicas" in capfd.readouterr().err
    assert (grpo.experiment.get() or {})["spec"]["servers"]["replicas"] == 3


def test_python_suspends_resumes_and_scales_an_experiment(grpo: Grpo) -> None:
    grpo.write(servers__replicas=1, servers__maxReplicas=3)
    kubeconfig, namespace = (grpo.place[grpo.place.index(flag) + 1] for flag in ("--kubeconfig", "--namespace"))
    experiment = Client.from_yaml(grpo.path, on="kubernetes", namespace=namespace, kubeconfig=kubeconfig)
    assert experiment.run(wait=False).run == "exp"
    grpo.experiment.until_phase("Running")
    states = experiment.follow(poll_s=0.1)
    assert next(states).state == "running"
    experiment.suspend()
    assert next(status.state for status in states if status.state != "running") == "stopped"
    experiment.resume()
    with pytest.raises(ValueError, match="exp is not suspended"):
        experiment.resume()
    experiment.scale(2)
    assert (grpo.experiment.get() or {})["spec"]["servers"]["replicas"] == 2


def test_the_page_shows_experiments_and_ends_with_the_command(grpo: Grpo) -> None:
    grpo.write()
    assert grpo.run("--detach") == 0
    grpo.experiment.until_phase("Running")
    command = [sys.executable, "-m", "areal_launcher.cli", "ui", *grpo.place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, contextlib.ExitStack() as at_end:
        at_end.callback(process.kill)  # or a failure below would wait for the command
        assert process.stdout is not None
        address = next(text for text in process.stdout if text.startswith("http")).strip()
        base = address.split("?")[0]
        with httpx.Client(follow_redirects=True, trust_env=False) as client:
            assert client.get(f"{base}api/runs").status_code == 403
            client.get(address)
            [row] = client.get(f"{base}api/runs").json()
            assert (row["name"], row["state"]) == (f"{grpo.experiment.namespace.name}/exp", "running")
            assert client.get(f"{base}api/runs/{row['id']}").json()["events"] is not None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_areals_file_becomes_an_experiment_in_the_cluster(
    grpo: Grpo, tmp_path: Path, operator: OperatorProcess
) -> None:
    source = {
        "experiment_name": "gsm8k-grpo",
        "trial_name": "t",
        "allocation_mode": "sglang:d2p1t1+d2p1t1",
        "cluster": {"n_nodes": 1, "n_gpus_per_node": 4, "fileroot": "/tmp/x"},
        "actor": {"path": "Qwen/Qwen3-1.7B"},
        "train_dataset": {"path": "openai/gsm8k", "batch_size": 8},
    }
    grpo.path.write_text(yaml.safe_dump(source))
    assert cli.main(["run", "--config", str(grpo.path), *grpo.place, "--detach", "seed=3"]) == 0
    body = grpo.experiment.namespace.api.get("GRPOExperiment", grpo.experiment.namespace.name, "gsm8k-grpo")
    assert body is not None
    assert (body["spec"]["servers"]["replicas"], body["spec"]["trainer"]["processesPerNode"]) == (2, 2)
    assert body["spec"]["config"]["seed"] == 3


REFUSALS = [
    (["here.py"], "trainer.script: here.py is a local file that pods cannot see"),
    (["config.train_dataset.path=./here.jsonl"], "train_dataset.path: ./here.jsonl is a local file"),
    (["--port", "1"], "--port does not apply to --on kubernetes"),
    (["--context", "nowhere"], "the kubeconfig has no context nowhere; set --context to one of c"),
    (["--kubeconfig", "nowhere.yaml"], "nowhere.yaml: no such kubeconfig"),
    (["config.nonsense=1"], "unknown key config.nonsense"),
    (["--results", "taken"], "taken contains a local run; choose another config.trial_name"),
]


def test_invalid_requests_are_refused_before_anything_is_created(grpo: Grpo, capfd: pytest.CaptureFixture[str]) -> None:
    Path("here.py").write_text("")
    Path("here.jsonl").write_text("")
    Path("taken").mkdir()
    Path("taken/stats.jsonl").write_text("")
    grpo.write()
    for arguments, message in REFUSALS:
        assert grpo.run(*arguments) == 2, arguments
        error = capfd.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert grpo.experiment.get() is None


def test_a_script_in_a_custom_image_is_accepted(grpo: Grpo) -> None:
    Path("here.py").write_text("")
    grpo.write(trainer__image="mine:1")
    assert grpo.run("here.py", "--detach") == 0
    assert (grpo.experiment.get() or {})["spec"]["trainer"]["script"] == "here.py"


def test_status_shows_all_experiments_or_one(grpo: Grpo, capfd: pytest.CaptureFixture[str]) -> None:
    namespace = grpo.experiment.namespace
    grpo.write()
    assert grpo.run("--detach") == 0
    grpo.experiment.until_phase("Running")
    report = {"step": 2, "reward": 0.5, "progress": "2/10"}
    namespace.api.patch("GRPOExperiment", namespace.name, "exp", {"status": report}, "status")
    capfd.readouterr()
    assert cli.main(["status", *grpo.place]) == 0
    head, line = capfd.readouterr().out.splitlines()
    assert head.split() == ["NAMESPACE", "NAME", "PHASE", "STEP", "REWARD", "SERVERS", "AGE", "MESSAGE"]
    assert line.split()[:6] == [namespace.name, "exp", "Running", "2/10", "0.500", "1/1"]
    assert cli.main(["status", "--on", "kubernetes", "--kubeconfig", grpo.kubeconfig]) == 0
    assert namespace.name in capfd.readouterr().out
    assert cli.main(["status", "exp", *grpo.place]) == 0
    output = capfd.readouterr().out
    assert output.startswith("exp  Running  step 2/10  reward 0.500  servers 1/1")
    assert "ServersReady  True  Ready" in output
    assert "pod exp-server-0  node-" in output
    assert cli.main(["status", "exp", "--json", *grpo.place]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["state"], shown["step"], shown["reward"]) == ("running", 2, 0.5)
    assert [(server["name"], server["state"]) for server in shown["servers"]] == [("server-0", "ready")]
    assert cli.main(["status", "other", *grpo.place]) == 2
    assert f"other: no such experiment in namespace {namespace.name}" in capfd.readouterr().err


def test_logs_name_the_pod_of_each_line_and_show_a_crashed_containers_previous_log(
    grpo: Grpo, node: NodeLogs, capfd: pytest.CaptureFixture[str]
) -> None:
    namespace = grpo.experiment.namespace
    namespace.behave("trainer", node.writing("step 1\n", run))
    node.previous[namespace.name, "exp-server-0"] = b"out of memory\n"
    namespace.behave("server", hang("CrashLoopBackOff", "back-off", restarts=2))
    grpo.write()
    assert grpo.run("--detach") == 0
    eventually(lambda: any(pod[0] == namespace.name for pod in node.logs), "the trainer writes")
    eventually(lambda: grpo.experiment.condition("ServersReady").get("reason") == "CrashLoop", "the server crashes")
    capfd.readouterr()
    assert cli.main(["logs", "exp", *grpo.place]) == 0
    server, trainer = sorted(capfd.readouterr().out.splitlines())
    assert server == "exp-server-0 | out of memory"
    assert trainer.startswith("exp-trainer-1-0-")
    assert trainer.endswith(" | step 1")
    assert cli.main(["logs", "exp", "server-0", *grpo.place]) == 0
    assert cli.main(["logs", "exp", "--component", "servers", *grpo.place]) == 0
    assert capfd.readouterr().out.splitlines() == ["exp-server-0 | out of memory"] * 2
    assert cli.main(["logs", "exp", "server-9", *grpo.place]) == 2
    assert "server-9: no such pod of exp; give one of exp-server-0, exp-trainer-1-0-" in capfd.readouterr().err


def test_logs_are_followed_until_the_run_ends(grpo: Grpo, node: NodeLogs, capfd: pytest.CaptureFixture[str]) -> None:
    grpo.experiment.namespace.behave("trainer", node.writing("step 1\nstep 2\n", end(0)))
    grpo.write()
    assert grpo.run("--detach") == 0
    grpo.experiment.until_phase("Succeeded")
    capfd.readouterr()
    assert cli.main(["logs", "exp", "trainer", "-f", *grpo.place]) == 0
    assert [line.split(" | ")[1] for line in capfd.readouterr().out.splitlines()] == ["step 1", "step 2"]


def test_a_missing_namespace_is_reported_with_the_fix(grpo: Grpo, capfd: pytest.CaptureFixture[str]) -> None:
    grpo.write()
    assert grpo.run("--namespace", "nowhere") == 1
    error = capfd.readouterr().err
    assert 'namespaces "nowhere" not found; create it: kubectl create namespace nowhere' in error


def test_local_commands_explain_the_alternative_in_a_cluster(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "somewhere", "--on", "kubernetes"]) == 2
    assert "grpo run --on kubernetes fetches one when the run ends" in capfd.readouterr().err
    assert cli.main(["eval", "somewhere", "--on", "kubernetes"]) == 2
    assert "set config.valid_dataset and config.evaluator.freq_steps" in capfd.readouterr().err
    assert cli.main(["status", "somewhere", "--namespace", "x"]) == 2
    assert "--namespace applies only to Kubernetes; add --on kubernetes" in capfd.readouterr().err
