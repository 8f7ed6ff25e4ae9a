"""Models written as files load again to the same models."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_api.config import GRPOConfig
from areal_api.experiment import GRPOExperiment
from areal_api.load import load_experiment, load_expr_config
from areal_api.render import config_yaml, experiment_yaml
from support.experiment_cases import CASES, Case

GOOD = [case for case in CASES if case.problem is None]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_an_experiment_written_and_read_is_the_same(case: Case, tmp_path: Path) -> None:
    experiment = GRPOExperiment.model_validate(case.experiment())
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment_yaml(experiment))
    assert load_experiment(path) == experiment


AWKWARD = Case(
    "",
    {
        "spec.config.gconfig.stop": ["${x}", "a: b", "#", "null", "ü\n", "1e5"],
        "spec.config.actor.adv_norm": {},
        "spec.config.actor.optimizer.lr": 1e-7,
        "spec.config.actor.behav_imp_weight_cap": None,
        "spec.config.ref.path": "reference",
        "spec.servers.env": [{"name": "A", "value": "${HOME}"}],
        "spec.servers.args": {"deep": {"list": [1, "x"]}},
        "metadata.labels": {"team": "a"},
    },
)


def test_awkward_values_survive(tmp_path: Path) -> None:
    experiment = GRPOExperiment.model_validate(AWKWARD.experiment())
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment_yaml(experiment))
    assert load_experiment(path) == experiment


def test_the_resolved_configuration_is_the_same(tmp_path: Path) -> None:
    config = GRPOExperiment.model_validate(AWKWARD.experiment()).spec.config
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config))
    assert load_expr_config(["--config", str(path)], GRPOConfig)[0] == config


def test_only_what_differs_is_written_with_its_meaning() -> None:
    text = experiment_yaml(GRPOExperiment.model_validate(Case("", {"spec.servers.replicas": 3}).experiment()))
    assert "    replicas: 3  # Number of servers; may be changed during the run.\n" in text
    assert "experiment_name" not in text
    assert "storage" not in text
    assert max(len(line) for line in text.splitlines()) <= 120
