"""Configuration errors name source, key, value and fix."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from areal_api.config import GRPOConfig
from areal_api.errors import ConfigError, config_error, describe, problems_of, shown
from areal_api.load import parse_experiment
from hack.testbed.experiment_case import Case


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ("x", "'x'"), (1.5, "1.5"), ("y" * 99, "'" + "y" * 56 + "…")],
)
def test_values_are_shown_as_in_a_file(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError(), "TimeoutError"),
        (ConnectionResetError(104, "reset\n by  peer"), "ConnectionResetError: [Errno 104] reset by peer"),
        (KeyError("data"), "KeyError: 'data'"),
        (AssertionError(" \n"), "AssertionError"),
    ],
)
def test_a_log_line_has_the_type_of_an_error_and_its_text_if_it_has_one(error: Exception, text: str) -> None:
    assert describe(error) == text


def test_several_problems_stand_on_one_line_each() -> None:
    assert str(config_error("f.yaml", ["a: b"])) == "f.yaml: a: b"
    assert str(config_error("f.yaml", ["a: b", "c: d"])) == "f.yaml: 2 problems\n  a: b\n  c: d"


def test_sections_around_the_users_file_are_left_out() -> None:
    with pytest.raises(ValidationError) as caught:
        GRPOConfig.model_validate({"experiment_name": "e", "seed": -1})
    assert problems_of(caught.value, GRPOConfig)[0] == "seed: -1 is below 0; give at least 0"


def test_an_unknown_key_of_an_item_suggests_the_keys_of_the_item() -> None:
    case = Case("", {"spec.tools": [{"name": "a", "imge": "x"}]})
    with pytest.raises(ConfigError, match=r"spec\.tools\.0\.imge: unknown key; did you mean 'image'\?"):
        parse_experiment(case.experiment(), source="case")
