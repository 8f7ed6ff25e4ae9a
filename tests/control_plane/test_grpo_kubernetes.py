"""``grpo --on kubernetes`` against a real API server and the real operator; nodes are simulated."""

from __future__ import annotations

import base64
import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from areal_launcher import cli
from areal_launcher.client import Experiment as Client
from areal_launcher.cluster.client import ClusterTarget
from areal_launcher.cluster.page import ClusterRuns
from areal_launcher.ui.access import TokenAccess
from areal_launcher.ui.app import create_app
from hack.cluster.control_plane import ControlPlane
from hack.testbed.fake_kubelet import end, hang, run
from hack.testbed.kube_api import eventually
from hack.testbed.operator_process import OperatorProcess
from support.grpo_on_kubernetes import Grpo, read_until, user_kubeconfig
from support.node_logs import NodeLogs, Readers


def test_a_run_is_applied_followed_and_fetched_with_a_users_permissions(
    grpo: Grpo,
    plane: ControlPlane,
    tmp_path: Path,
    node: NodeLogs,
    volume: Path,
    operator: OperatorProcess,
    capfd: pytest.CaptureFixture[str],
) -> None:
    namespace = grpo.experiment.namespace
    namespace.behave("trainer", end(0))
    grpo.write()
    grpo.kubeconfig = user_kubeconfig(namespace, plane, tmp_path)
    with Readers(namespace.api, node, namespace.name, volume) as readers:
        assert grpo.run() == 0
        client = Client.from_yaml(grpo.path, on="kubernetes", namespace=namespace.name, kubeconfig=grpo.kubeconfig)
        assert client.history()["task_reward/avg"].to_list() == pytest.approx([0.3, 0.6, 0.9])
        assert client.rollouts()["completion"].to_list() == ["the answer of step 12"]
        assert client.rollouts([2, 1])["step"].to_list() == [2, 1]
        with pytest.raises(ValueError, match="no samples of step 3; it has those of steps 1 to 12"):
            client.rollouts([3])
    output = capfd.readouterr().out
    assert "cannot check that the operator is running" in output
    assert "experiment exp created: context c" in output
    assert "0.300 → 0.900" in output
    assert "on the volume claim exp-run" in output
    assert sorted(path.name for path in grpo.results.iterdir()) == [
        "cluster.json",
        "config.yaml",
        "experiment.yaml",
        "reward.png",
        "stats.jsonl",
        "summary.json",
    ]
    assert len(readers.pods) == 7
    eventually(lambda: not namespace.api.list("Pod", namespace.name, "app.kubernetes.io/managed-by=grpo"), "no reader")
    assert cli.main(["status", str(grpo.results)]) == 0
    assert cli.main(["plot", str(grpo.results)]) == 0
    assert cli.main(["eval", str(grpo.results)]) == 2
    assert "has no checkpoint here, they are on the volume claim exp-run" in capfd.readouterr().err


def test_the_page_reads_samples_from_the_volume_of_a_run(
    grpo: Grpo, plane: ControlPlane, tmp_path: Path, node: NodeLogs, volume: Path, operator: OperatorProcess
) -> None:
    namespace = grpo.experiment.namespace
    namespace.behave("trainer", end(0))
    grpo.write()
    grpo.kubeconfig = user_kubeconfig(namespace, plane, tmp_path)
    assert grpo.run("--detach") == 0
    grpo.experiment.until_phase("Succeeded")
    target = ClusterTarget(str(plane.kubeconfig()), None, namespace.name)
    app = create_app(TokenAccess(ClusterRuns.connect(target), "secret"))
    with (
        Readers(namespace.api, node, namespace.name, volume) as readers,
        TestClient(app, base_url="http://127.0.0.1") as http,
    ):
        http.get("/?token=secret")
        [run] = http.get("/api/runs").json()
        path = f"/api/runs/{run['id']}"
        assert http.get(path).json()["files"] is True
        assert http.get(path).json()["more"] is True
        loaded = http.get(f"{path}/all").json()
        assert (loaded["step"], loaded["more"], loaded["charts"][0]["title"]) == (3, False, "Reward")
        points = http.get(f"{path}/series?name=task_reward").json()
        assert points["means"]["task_reward"] == pytest.approx([0.3, 0.6, 0.9])
        assert http.get(f"{path}/rollouts").json() == [1, 2, 12]
        [group] = http.get(f"{path}/rollouts/12").json()["groups"]
        assert group["samples"][0]["completion"] == "the answer of step 12"
        assert http.get(f"{path}/rollouts/12/0").json()["tokens"][0] == "problem "
        assert http.get(f"{path}/rollouts/3").status_code == 404
        assert http.get(f"{path}/evaluations").json() == [0, 12]
        assert http.get(f"{path}/evaluations/0/12").json()["sets"][0]["n_better"] == 1
        assert len(readers.pods) == 5  # the statistics, two lists and two reads


def test_a_packed_directory_reaches_the_trainer_and_is_deleted_with_the_experiment(
    grpo: Grpo, plane: ControlPlane, operator: OperatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "reward.py").write_text("x = 1")
    (tmp_path / "code" / "train.py").write_text("import reward")
    grpo.write(code__directory="code", trainer__script="train.py")
    namespace = grpo.experiment.namespace
    grpo.kubeconfig = user_kubeconfig(namespace, plane, tmp_path)
    assert grpo.run("--detach") == 0
    job = eventually(lambda: namespace.api.list("Job", namespace.name) or None, "no Job")[0]
    pod = job["spec"]["template"]["spec"]
    (name,) = [one["configMap"]["name"] for one in pod["volumes"] if one["name"] == "areal-code-archive"]
    stored = namespace.api.get("ConfigMap", namespace.name, name)
    assert stored["immutable"] is True
    assert [owner["name"] for owner in stored["metadata"]["ownerReferences"]] == ["exp"]
    command = list(pod["initContainers"][1]["command"])
    replaced = {
        "python3": sys.executable,
        "/opt/areal-code": str(tmp_path / "into"),
        "/etc/areal/code/code.tar.gz": str(tmp_path / "code.tar.gz"),
    }
    (tmp_path / "code.tar.gz").write_bytes(base64.b64decode(stored["binaryData"]["code.tar.gz"]))
    subprocess.run([replaced.get(word, word) for word in command], check=True)
    assert (tmp_path / "into" / "source" / "reward.py").read_text() == "x = 1"
    code = eventually(lambda: grpo.experiment.status.get("code"), "no code in the status")
    assert code == job["metadata"]["annotations"]["areal.dev/code"]
    assert code.startswith("sha256:")


def test_a_failed_run_reports_reason_exit_status_and_last_log_lines(
    grpo: Grpo, node: NodeLogs, capfd: pytest.CaptureFixture[str]
) -> None:
    last = "Traceback (most recent call last):\nKeyError: 'answer'\n"
    grpo.experiment.namespace.behave("trainer", node.writing(last, end(7, "no column 'answer'")))
    grpo.write(runPolicy__backoffLimit=0)
    assert grpo.run() == 7
    error = capfd.readouterr().err.splitlines()
    assert error[-2] == "  | KeyError: 'answer'"
    assert error[-1].startswith("grpo: exp Failed: attempt 1 failed: ")
    assert "no column 'answer'" in error[-1]
    assert not grpo.results.exists()


def test_results_that_cannot_be_fetched_are_an_error(
    grpo: Grpo, node: NodeLogs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    namespace = grpo.experiment.namespace
    namespace.behave("trainer", end(0))
    grpo.write()
    (tmp_path / "empty").mkdir()
    with Readers(namespace.api, node, namespace.name, tmp_path / "empty"):
        assert grpo.run() == 1
    assert "exp Succeeded, but its results cannot be fetched" in capfd.readouterr().err


def test_a_detached_run_prints_the_next_commands(grpo: Grpo, capfd: pytest.CaptureFixture[str]) -> None:
    grpo.write()
    assert grpo.run("--detach") == 0
    output = capfd.readouterr().out
    name = grpo.experiment.namespace.name
    assert f"follow:  grpo run --on kubernetes --kubeconfig {grpo.kubeconfig} --namespace {name}" in output
    assert f"delete:  kubectl --kubeconfig {grpo.kubeconfig} delete grpo exp --namespace {name}" in output
    grpo.experiment.until_phase("Running")


def test_ctrl_c_keeps_the_run_and_the_same_command_follows_it_again(grpo: Grpo) -> None:
    grpo.write()
    for verb in ("created", "exists, following it"):
        process = grpo.start()
        assert process.stdout is not None
        lines = read_until(process, "starting the trainer, first step")
        assert any(f"experiment exp {verb}" in line for line in lines)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(10.0) == 130
        assert "exp continues in the cluster" in rest
        assert "Traceback" not in rest
    assert grpo.experiment.status["phase"] == "Running"
    assert (grpo.experiment.get() or {})["metadata"]["generation"] == 1


def test_on_a_terminal_ctrl_c_keeps_the_run_and_restores_the_cursor(grpo: Grpo) -> None:
    grpo.write()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(grpo.command(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    while b"first step" not in shown:
        shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait(10.0) == 130
    assert b"exp continues in the cluster" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")  # the cursor is visible again


def test_progress_and_problems_are_shown_during_a_run(grpo: Grpo) -> None:
    experiment = grpo.experiment
    namespace, image = experiment.namespace, "manifest for server:1 not found"
    namespace.behave("server", hang("ImagePullBackOff", image))
    grpo.write(config__total_train_steps=10)
    process = grpo.start()
    read_until(process, "waiting: ServersReady: ImagePull: ")
    namespace.behave("server", run)
    read_until(process, "starting the trainer, first step")
    report = {"step": 2, "reward": 0.5, "staleness": 1.0, "tokensPerSecond": 1200.0}
    namespace.api.patch("GRPOExperiment", namespace.name, "exp", {"status": report}, "status")
    assert "step 2/10  reward 0.500  tok/s 1,200  staleness 1.00" in read_until(process, "step 2")[-1]
    report |= {"step": 4}
    namespace.api.patch("GRPOExperiment", namespace.name, "exp", {"status": report}, "status")
    assert "left " in read_until(process, "step 4")[-1]
    namespace.behave("server", hang("CrashLoopBackOff", "back-off 5m0s", restarts=3))
    read_until(process, "training; ServersReady: CrashLoop: ")
    namespace.behave("server", run)
    read_until(process, "training")
    namespace.api.delete("Pod", namespace.name, next(pod for pod in namespace.names("Pod") if "trainer" in pod))
    read_until(process, "warning: Disrupted: attempt 2 starts after a disruption, which does not count")
    experiment.delete()
    read_until(process, "exp was deleted from namespace")
    assert process.wait(10.0) == 1


def test_a_suspended_run_is_waited_for(grpo: Grpo) -> None:
    grpo.write()
    process = grpo.start()
    read_until(process, "starting the trainer, first step")
    grpo.experiment.edit(runPolicy__suspend=True)
    read_until(process, "suspended: nothing runs")
    grpo.experiment.edit(runPolicy__suspend=False)
    read_until(process, "starting the trainer, first step")
    process.kill()
    process.wait()


def test_an_api_server_that_restarts_is_waited_for(grpo: Grpo, plane: ControlPlane) -> None:
    grpo.write()
    process = grpo.start()
    read_until(process, "starting the trainer, first step")
    plane.stop_api_server()
    read_until(process, "; the run continues meanwhile")
    plane.restart_api_server()
    read_until(process, "starting the trainer, first step")
    process.kill()
    process.wait()


def test_changing_the_configuration_of_a_started_run_is_refused_with_the_servers_message(
    grpo: Grpo, capfd: pytest.CaptureFixture[str]
) -> None:
    grpo.write()
    assert grpo.run("--detach") == 0
    grpo.experiment.until_phase("Running")
    assert grpo.run("--detach", "config.seed=9") == 1
    error = capfd.readouterr().err
    assert "spec.config of a run that has started does not change; create a new experiment" in error
    assert "or delete the run: kubectl delete grpo exp" in error


def test_an_experiment_applied_with_references_is_followed(grpo: Grpo, capfd: pytest.CaptureFixture[str]) -> None:
    grpo.experiment.apply(config__tokenizer_path="${actor.path}")
    grpo.experiment.until_phase("Running")
    grpo.write()
    assert grpo.run("--detach") == 0
    assert (grpo.experiment.get() or {})["spec"]["config"]["tokenizer_path"] == "${actor.path}"
    assert "experiment exp exists, following it" in capfd.readouterr().out


def test_servers_scaled_in_the_cluster_keep_their_number(grpo: Grpo, capfd: pytest.CaptureFixture[str]) -> None:
    namespace = grpo.experiment.namespace
    grpo.write(servers__replicas=1, servers__maxReplicas=3)
    assert grpo.run("--detach") == 0
    namespace.api.patch("GRPOExperiment", namespace.name, "exp", {"spec": {"replicas": 3}}, "scale")
    assert grpo.run("--detach") == 0
    assert "servers.replicas was changed in the cluster; keeping that value" in capfd.readouterr().out
    assert (grpo.experiment.get() or {})["spec"]["servers"]["replicas"] == 3
    assert grpo.run("--detach", "storage.size=2Gi") == 0
    namespace.api.patch("GRPOExperiment", namespace.name, "exp", {"spec": {"storage": {"size": "5Gi"}}})
    assert grpo.run("--detach", "storage.size=2Gi") == 1
    assert "exp exists with another value of storage.size" in capfd.readouterr().err


def test_a_stopped_run_is_continued_by_the_same_command_but_a_suspended_one_is_not(
    grpo: Grpo, capfd: pytest.CaptureFixture[str]
) -> None:
    def suspended() -> bool:
        return bool((grpo.experiment.get() or {})["spec"]["runPolicy"]["suspend"])

    grpo.write()
    assert grpo.run("--detach") == 0
    grpo.experiment.until_phase("Running")
    assert cli.main(["stop", "exp", *grpo.place]) == 0
    grpo.experiment.until_phase("Suspended")
    assert suspended()
    assert grpo.run("--detach", "runPolicy.suspend=false") == 0
    assert "exp was stopped and continues" in capfd.readouterr().out
    assert not suspended()
    grpo.experiment.until_phase("Running")
    grpo.experiment.edit(runPolicy__suspend=True)
    assert grpo.run("--detach") == 0
    assert suspended()
    assert cli.main(["resume", "exp", *grpo.place]) == 0
    assert not suspended()
    assert cli.main(["resume", "exp", *grpo.place]) == 2
    assert "exp is not suspended" in capfd.readouterr().err
    assert cli.main(["stop", "exp", *grpo.place, "--now"]) == 2
    assert "--now does not apply to --on kubernetes" in capfd.readouterr().err
