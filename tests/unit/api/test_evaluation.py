"""Held-out sets of a configuration."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from areal_api.config import GRPOConfig
from areal_api.errors import ConfigError
from areal_api.load import expand_home_in, parse_experiment
from hack.testbed.experiment_case import Case


def config(**changes: Any) -> GRPOConfig:
    base: dict[str, Any] = {
        "experiment_name": "e",
        "actor": {"path": "model", "ppo_n_minibatches": 1},
        "train_dataset": {"path": "train"},
        "valid_dataset": {"path": "valid"},
    }
    return GRPOConfig(**(base | changes))


def held_out(name: str, **rest: Any) -> dict[str, Any]:
    return {"name": name, "dataset": {"path": name}, **rest}


def sets(*found: dict[str, Any]) -> dict[str, Any]:
    return {"sets": list(found)}


def test_sets_take_over_the_reward_and_the_sampling_of_valid_dataset() -> None:
    made = config(
        eval_gconfig={"n_samples": 4},
        evaluator=sets(
            {"name": "math", "dataset": {"path": "math"}, "gconfig": {"n_samples": 8}},
            {"name": "b", "dataset": {"path": "b"}},
        ),
    )
    assert [
        (one.name, one.key, one.dataset.path, one.gconfig.n_samples, one.has_own_settings) for one in made.held_out
    ] == [
        ("valid", "valid_dataset", "valid", 4, False),
        ("math", "evaluator.sets[0].dataset", "math", 8, True),
        ("b", "evaluator.sets[1].dataset", "b", 4, False),
    ]
    assert all(one.reward == made.reward for one in made.held_out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluator": sets({"name": "a", "dataset": {"path": "x"}}, {"name": "a", "dataset": {"path": "y"}})},
            "'a' occurs twice",
        ),
        ({"evaluator": sets({"name": "valid", "dataset": {"path": "x"}})}, "'valid' is the name of valid_dataset"),
        ({"evaluator": sets({"name": "a", "dataset": {}})}, r"sets\[0\].dataset.path is empty"),
        ({"evaluator": sets({"name": "a/b", "dataset": {"path": "x"}})}, "name"),
        (
            {"evaluator": sets({"name": "a", "dataset": {"path": "x"}}), "valid_dataset": None},
            "evaluator.sets needs valid_dataset",
        ),
        ({"evaluator": {"save_best": True}, "valid_dataset": None}, "evaluator.save_best needs valid_dataset"),
    ],
)
def test_unusable_sets_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_paths_of_sets_may_start_with_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    expanded = expand_home_in(config(evaluator=sets({"name": "a", "dataset": {"path": "~/a.jsonl"}})))
    assert expanded.held_out[1].dataset.path == "/home/somebody/a.jsonl"


def test_sampling_that_a_server_would_refuse_is_refused_for_each_set() -> None:
    own = {"name": "a", "dataset": {"path": "x"}, "gconfig": {"stop": [""]}}
    case = Case("", {"spec.config.valid_dataset": {"path": "v"}, "spec.config.evaluator.sets": [own]})
    with pytest.raises(ConfigError, match=r"config.evaluator.sets\[0\].gconfig.stop contains an empty text"):
        parse_experiment(case.experiment(), source="case")
