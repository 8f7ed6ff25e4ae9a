"""``grpo eval``."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher import cli
from areal_launcher.places.local.evaluate import evaluation_experiment
from support.local_runs import load


def test_an_evaluation_uses_the_checkpoint_and_one_process(experiment_path: Path) -> None:
    spec = evaluation_experiment(load(experiment_path), "other/model").spec
    assert spec.config.actor.path == "other/model"
    assert spec.trainer.script == "areal_trainer.evaluate"
    assert spec.trainer.ranks == 1


def test_a_checkpoint_outside_a_run_needs_an_experiment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(tmp_path)]) == 2
    error = capfd.readouterr().err
    assert f"{tmp_path} is not inside a run directory" in error
    assert "--config" in error
