"""Commands that do not depend on where a run executes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from areal_api.render import experiment_yaml
from areal_launcher import cli
from areal_launcher.run_files import RunLock
from support.local_runs import load


def test_an_experiment_survives_a_round_trip_through_a_file(experiment_path: Path, tmp_path: Path) -> None:
    experiment = load(experiment_path, "config.seed=3", "servers.replicas=2")
    (tmp_path / "again.yaml").write_text(experiment_yaml(experiment))
    assert load(tmp_path / "again.yaml") == experiment


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


def test_stopping_and_scaling_need_a_running_launcher(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    assert cli.main(["stop", str(tmp_path)]) == 2
    assert "no grpo run uses it" in capfd.readouterr().err
    assert cli.main(["scale", str(tmp_path), "2"]) == 2
    assert "no grpo run uses it; set servers.replicas and start it" in capfd.readouterr().err
    assert cli.main(["stop", str(tmp_path / "nowhere")]) == 2
    assert "no run here" in capfd.readouterr().err


def test_a_run_is_resumed_where_it_was_started(
    experiment_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/here"
    assert cli.main(["resume", str(run)]) == 2
    assert "no run here" in capfd.readouterr().err
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    experiment = load(experiment_path, "config.cluster.fileroot=elsewhere")
    (run / "experiment.yaml").write_text(experiment_yaml(experiment))
    assert cli.main(["resume", str(run)]) == 2
    assert "relative to the current folder; resume it in the folder in which it was started" in capfd.readouterr().err
    lock = RunLock(run)
    assert cli.main(["resume", str(run)]) == 2
    assert "is running" in capfd.readouterr().err
    lock.release()
