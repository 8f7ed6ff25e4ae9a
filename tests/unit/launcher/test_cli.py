"""The commands of ``grpo``, with a small server in the place of SGLang and a small script in that of the loop."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import yaml

from areal_api.commands import Command
from areal_api.experiment import GRPOExperiment
from areal_api.load import load_experiment
from areal_api.render import experiment_yaml
from areal_launcher import actions, cli
from areal_launcher.local import prepare
from areal_launcher.local.prepare import compute_threads, environment, evaluation_of, plan_run

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
TRAINER = """
import json, os, urllib.request
run = os.environ["AREAL_RUN_DIR"]
assert os.stat(os.environ["AREAL_API_KEY_FILE"]).st_mode & 0o777 == 0o600
assert os.path.samefile(os.environ["AREAL_CONFIG"], run + "/config.yaml")
print("servers", os.environ["AREAL_LLM_SERVER_ADDRS"])
with open(run + "/stats.jsonl", "w") as file:
    for step in (1, 2, 3):
        file.write(json.dumps({"step": step, "version": step, "time": step, "task_reward/avg": 0.3 * step}) + "\\n")
if os.environ.get("BREAK"):
    print("no column 'answer' in the data set")
    raise SystemExit(5)
"""


@pytest.fixture
def experiment_path(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1", "answer": "#### 2"}\n')
    (tmp_path / "train.py").write_text(TRAINER)
    experiment = {
        "apiVersion": "areal.dev/v1alpha1",
        "kind": "GRPOExperiment",
        "metadata": {"name": "words"},
        "spec": {
            "config": {
                "cluster": {"fileroot": str(tmp_path / "runs")},
                "actor": {"path": str(model)},
                "train_dataset": {"path": str(tmp_path / "train.jsonl"), "batch_size": 4},
                "valid_dataset": {"path": str(tmp_path / "train.jsonl"), "batch_size": 4},
            },
            "servers": {"device": "cpu"},
            "trainer": {"device": "cpu", "script": str(tmp_path / "train.py")},
        },
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@pytest.fixture
def small_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(experiment: GRPOExperiment, index: int, *, port: int, **rest: object) -> Command:
        return Command([sys.executable, "-S", "-c", SERVER, str(port)], {})

    monkeypatch.setattr(prepare, "server_command", command)


def load(path: Path, *overrides: str) -> GRPOExperiment:
    return load_experiment(path, overrides)


@pytest.mark.usefixtures("small_servers")
def test_run_trains_and_tells_what_came_out(
    experiment_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(experiment_path), "config.seed=7"]) == 0
    run = tmp_path / "runs" / "words" / "trial0"
    output = capfd.readouterr().out
    assert "server-0 ready" in output
    assert "0.300 → 0.900" in output
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 7
    assert (run / "reward.png").exists()
    assert "servers 127.0.0.1:" in (run / "logs" / "trainer.log").read_text()
    assert not (run / "api-key").exists()
    assert cli.main(["status", str(run)]) == 0
    assert "0.300 → 0.900" in capfd.readouterr().out
    assert cli.main(["logs", str(run), "trainer"]) == 0
    assert "servers 127.0.0.1:" in capfd.readouterr().out


@pytest.mark.usefixtures("small_servers")
def test_a_failing_trainer_gives_its_exit_status_and_its_last_line(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BREAK", "1")
    assert cli.main(["run", str(experiment_path), "runPolicy.backoffLimit=0"]) == 5
    error = capfd.readouterr().err.splitlines()
    assert error[-2] == "  | no column 'answer' in the data set"
    assert error[-1].startswith("grpo: the trainer failed with exit status 5 (see ")


def full(*args: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "reward.png")


@pytest.mark.usefixtures("small_servers")
def test_a_full_disk_does_not_hide_why_a_run_failed(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BREAK", "1")
    monkeypatch.setattr(actions, "plot_run", full)
    assert cli.main(["run", str(experiment_path), "runPolicy.backoffLimit=0"]) == 5
    shown = capfd.readouterr()
    assert "no picture was drawn: [Errno 28] No space left on device" in shown.out
    assert shown.err.splitlines()[-2] == "  | no column 'answer' in the data set"


def test_a_launcher_without_room_says_what_to_do(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "write_whole", full)
    assert cli.main(["run", str(experiment_path)]) == 1
    assert "No space left on device: 'reward.png'; free some room" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config.actor.pth=x"], "did you mean config.actor.path"),
        (["config.actor.path=./nowhere"], "no model at"),
        (["config.train_dataset.path=nowhere.jsonl"], "no data set at"),
        (["trainer.nodes=2"], "set trainer.nodes=1"),
        (["servers.env=[{name: A, valueFrom: {}}]"], "servers.env: A has no value"),
        (["nonsense"], "neither a script"),
        (["missing.py"], "missing.py: no such file"),
        (["second.yaml"], "two experiments were given"),
        (["config.cluster.fileroot=/proc/nowhere"], "cannot make /proc/nowhere"),
    ],
)
def test_what_a_user_wrote_wrong_is_one_message_and_status_2(
    experiment_path: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(experiment_path), *arguments]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_cuda_without_a_gpu_says_what_to_set(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(["run", str(experiment_path), "trainer.device=cuda"]) == 2
    assert "no GPU is visible here; set trainer.device=cpu to run without" in capfd.readouterr().err


def test_no_disk_space_names_both_sizes(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("areal_launcher.local.checks.LEAST_FREE_BYTES", 2**60)
    assert cli.main(["run", str(experiment_path)]) == 2
    assert "GiB free, the run needs 1073741824.0" in capfd.readouterr().err


def test_a_port_in_use_is_named(experiment_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    held = prepare.HeldPort("127.0.0.1")
    held._socket.listen()
    assert cli.main(["run", str(experiment_path), "--port", str(held.number)]) == 2
    assert f"cannot use port {held.number}" in capfd.readouterr().err
    held.release()


def test_servers_take_their_gpus_first_and_then_the_ranks(experiment_path: Path, tmp_path: Path) -> None:
    experiment = load(
        experiment_path,
        *("servers.device=cuda", "servers.replicas=2", "servers.tensorParallel=2"),
        *("trainer.device=cuda", "trainer.processesPerNode=2"),
    )
    gpus = ["0", "1", "4", "5", "6", "7"]
    plan = plan_run(
        experiment, run=tmp_path, ports=[1, 2], master_port=3, gpus=gpus, cores=2, key_file=tmp_path / "api-key"
    )
    assert [server.env["CUDA_VISIBLE_DEVICES"] for server in plan.servers] == ["0,1", "4,5"]
    assert plan.trainer.env["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert plan.trainer.env["AREAL_LLM_SERVER_ADDRS"] == "127.0.0.1:1,127.0.0.1:2"


def test_cores_are_shared_by_processes_that_work_at_the_same_time(experiment_path: Path) -> None:
    two = ("servers.replicas=2", "trainer.processesPerNode=2")
    synchronous = load(experiment_path, *two, "config.rollout.max_head_offpolicyness=0").spec
    asynchronous = load(experiment_path, *two, "config.rollout.max_head_offpolicyness=2").spec
    assert compute_threads(asynchronous, 8) == 2
    assert compute_threads(synchronous, 8) == 4
    assert compute_threads(asynchronous, 2) == 1


def test_a_command_adds_to_the_environment_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert environment(Command([], {"A": "b"})) == {**os.environ, "A": "b"}


def test_an_experiment_written_as_a_file_is_the_same_experiment(experiment_path: Path, tmp_path: Path) -> None:
    experiment = load(experiment_path, "config.seed=3", "servers.replicas=2")
    (tmp_path / "again.yaml").write_text(experiment_yaml(experiment))
    assert load(tmp_path / "again.yaml") == experiment


def test_an_evaluation_runs_the_checkpoint_in_one_process(experiment_path: Path) -> None:
    spec = evaluation_of(load(experiment_path), "other/model").spec
    assert spec.config.actor.path == "other/model"
    assert spec.trainer.script == "areal_trainer.evaluate"
    assert spec.trainer.ranks == 1


def test_convert_writes_an_experiment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "gsm8k_grpo.yaml"
    source.write_text(
        yaml.safe_dump(
            {
                "experiment_name": "gsm8k",
                "trial_name": "t",
                "allocation_mode": "sglang:d2p1t1+d2p1t1",
                "cluster": {"n_nodes": 1, "n_gpus_per_node": 4, "fileroot": "/tmp/x"},
                "actor": {"path": "Qwen/Qwen3-1.7B"},
                "train_dataset": {"path": "openai/gsm8k", "batch_size": 8},
            }
        )
    )
    assert cli.main(["convert", str(source), "-o", str(tmp_path / "experiment.yaml")]) == 0
    experiment = load(tmp_path / "experiment.yaml")
    assert experiment.name == "gsm8k"
    assert experiment.spec.servers.replicas == 2
    assert experiment.spec.trainer.ranks == 2


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_concise_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = cli.COMMANDS[command][0]().format_help()
    assert f"grpo {command}" in text
    assert len(text.splitlines()) < 40


def test_a_directory_without_a_run_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("plot", "status", "logs"):
        assert cli.main([command, str(tmp_path)]) == 2
        assert str(tmp_path) in capfd.readouterr().err


def test_evaluating_what_belongs_to_no_run_needs_an_experiment(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(tmp_path)]) == 2
    error = capfd.readouterr().err
    assert f"{tmp_path} belongs to no run here" in error
    assert "--config" in error
