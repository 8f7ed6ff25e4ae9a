"""Parts of pods: what the API server and the processes' environment would refuse is refused before."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.commands import literal_env
from areal_api.errors import ConfigError
from areal_api.load import parse_experiment
from hack.testbed.experiment_case import Case


def parsed(key: str, value: Any) -> Any:
    return parse_experiment(Case("", {key: value}).experiment(), source="case").spec


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("servers.env", [{"name": "A", "value": 1}], r"env\.0\.value: 1 is not text"),
        ("servers.env", [{"name": "A", "value": True}], r"env\.0\.value: true is not text"),
        ("trainer.env", [{"name": 1, "value": "x"}], r"env\.0\.name: 1 is not text"),
        ("trainer.env", [{"name": "A=B", "value": "x"}], r"env\.0\.name: 'A=B' does not match"),
        ("trainer.env", [{"name": "Ä", "value": "x"}], r"env\.0\.name: 'Ä' does not match"),
        ("trainer.env", [{"name": "A", "value": "x\x00y"}], "contains a NUL character"),
        ("trainer.tolerations", [{"key": "gpu", "value": 1}], r"value: 1 is not text"),
        ("servers.volumes", [{"name": "v", "configMap": {"name": 7}}], r"name: 7 is not text"),
    ],
)
def test_what_a_pod_could_not_have_is_refused(key: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parsed(f"spec.{key}", value)


@pytest.mark.parametrize("cpu", [4, 0.5, "500m", "1e3"])
def test_a_quantity_may_be_a_number_and_stays_as_written(cpu: Any) -> None:
    assert parsed("spec.servers.resources", {"limits": {"cpu": cpu}}).servers.resources == {"limits": {"cpu": cpu}}


@pytest.mark.parametrize("value", [True, "4 cores", float("inf")])
def test_other_values_are_no_quantity(value: Any) -> None:
    with pytest.raises(ConfigError, match="cpu"):
        parsed("spec.servers.resources", {"limits": {"cpu": value}})


def test_a_variable_without_a_value_is_empty_as_in_a_pod() -> None:
    env = parsed("spec.servers.env", [{"name": "A", "value": None}, {"name": "B", "value": ""}]).servers.env
    assert literal_env(env) == {"A": "", "B": ""}
