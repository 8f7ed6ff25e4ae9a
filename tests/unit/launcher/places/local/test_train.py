"""``grpo run`` on this machine."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import yaml

from areal_launcher import cli, commands
from areal_launcher.core import prepare


@pytest.mark.usefixtures("stand_in_servers")
def test_run_trains_and_prints_the_results(
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


@pytest.mark.usefixtures("stand_in_servers")
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


@pytest.mark.usefixtures("stand_in_servers")
def test_a_full_disk_does_not_hide_why_a_run_failed(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BREAK", "1")
    monkeypatch.setattr(commands, "plot_run", full)
    assert cli.main(["run", str(experiment_path), "runPolicy.backoffLimit=0"]) == 5
    shown = capfd.readouterr()
    assert "reward.png was not drawn: [Errno 28] No space left on device" in shown.out
    assert shown.err.splitlines()[-2] == "  | no column 'answer' in the data set"


def test_a_launcher_that_meets_a_full_disk_gives_the_fix(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "write_atomic", full)
    assert cli.main(["run", str(experiment_path)]) == 1
    assert "No space left on device: 'reward.png'; free some space" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config.actor.pth=x"], "did you mean config.actor.path"),
        (["config.actor.path=./nowhere"], "no model at"),
        (["config.train_dataset.path=nowhere.jsonl"], "no dataset at"),
        (["trainer.nodes=2"], "set trainer.nodes=1"),
        (["servers.env=[{name: A, valueFrom: {}}]"], "servers.env: A has valueFrom"),
        (["nonsense"], "not a script"),
        (["missing.py"], "missing.py: no such file"),
        (["second.yaml"], "two experiments were given"),
        (["config.cluster.fileroot=/proc/nowhere"], "cannot create /proc/nowhere"),
    ],
)
def test_a_user_error_is_one_message_and_status_2(
    experiment_path: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(experiment_path), *arguments]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_port_in_use_is_reported(experiment_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    held = socket.create_server(("127.0.0.1", 0))
    assert cli.main(["run", str(experiment_path), "--port", str(held.getsockname()[1])]) == 2
    assert f"cannot use port {held.getsockname()[1]}" in capfd.readouterr().err
    held.close()
