"""Checks before a local run starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher import cli


def test_too_little_disk_space_reports_both_sizes(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("areal_launcher.fit.free_bytes", lambda run: 2**20)
    assert cli.main(["run", str(experiment_path)]) == 2
    error = capfd.readouterr().err
    assert "the run needs 0.2 GiB, but the file system of cluster.fileroot has 0.0 GiB free" in error
    assert "--force runs it anyway" in error


def test_a_missing_script_in_the_file_is_refused(experiment_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(experiment_path), "trainer.script=/nowhere/train.py"]) == 2
    assert "trainer.script: no file at /nowhere/train.py" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["config.rollout.agent.mode=online", "agents=[{name: solver}]"],
            "agents lists solver, which only Kubernetes runs; leave it out (agents=[]), and start the agent yourself",
        ),
        (
            ["config.actor.weight_deltas=true", "storage.shared=false"],
            "actor.weight_deltas is true, but here the servers read published weights from the run directory",
        ),
        (["tools=[{name: run-python}]"], "set AREAL_TOOL_RUN_PYTHON_URL in trainer.env to its address"),
    ],
)
def test_what_needs_pods_is_refused_outside_kubernetes(
    experiment_path: Path, capfd: pytest.CaptureFixture[str], overrides: list[str], words: str
) -> None:
    assert cli.main(["run", str(experiment_path), *overrides]) == 2
    assert words in " ".join(capfd.readouterr().err.split())


def test_a_home_directory_in_the_file_is_expanded(
    experiment_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli.main(["run", str(experiment_path), "config.actor.path=~/model"]) == 2
    assert f"no model at {tmp_path}/home/model" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fileroot", "problem"), [("/tmp/\udcff", "is not valid UTF-8"), ("/tmp/" + "x" * 300, "File name too long")]
)
def test_a_run_directory_that_cannot_exist_is_refused(
    experiment_path: Path, fileroot: str, problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(experiment_path), f"config.cluster.fileroot={fileroot}"]) == 2
    error = capfd.readouterr().err
    assert "cluster.fileroot" in error
    assert problem in error


def test_force_runs_what_does_not_fit_and_says_so(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("areal_launcher.fit.free_bytes", lambda run: 2**20)
    assert cli.main(["run", str(experiment_path), "--force"]) == 0
    assert "--force: running although the run needs 0.2 GiB" in capfd.readouterr().out
