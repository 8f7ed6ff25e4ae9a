"""AReaL's rejection sampling, with bounds worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import support
from areal_api.areal_config.convert import convert
from areal_api.areal_config.rejection import keys_of
from areal_api.areal_config.tree import set_in
from areal_api.config import GRPOConfig
from areal_api.errors import ConfigError
from areal_api.load import read_yaml, resolve

CAP, MIN, KPOP = "actor.behav_imp_weight_cap", "actor.correction.min_weight", "actor.correction.max_binary_kl"
LEVEL, TRUNCATE = "actor.correction.weight_level", "actor.correction.truncate"
FILE = Path(support.__path__[0]) / "areal_files" / "v10.yaml"


def converted(**actor: Any) -> tuple[GRPOConfig, list[str]]:
    data = resolve(read_yaml(FILE), source="v10")
    for key, value in actor.items():
        set_in(data, f"actor.{key}", value)
    experiment, notes = convert(data)
    return GRPOConfig.model_validate({"experiment_name": "e", **experiment["spec"]["config"]}), notes


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ({}, {CAP: 5.0}),
        ({"lower": 0.5, "upper": 2}, {CAP: 2.0, MIN: 0.5}),  # IcePop
        ({"action": "clamp", "lower": 0.5}, {CAP: 5.0, MIN: 0.5, TRUNCATE: True}),
        ({"level": "sequence", "agg": "mean"}, {CAP: 5.0, LEVEL: "sequence"}),
        ({"metric": "binary_kl", "upper": 2.0}, {CAP: None, KPOP: 2.0}),  # KPop
        ({"metric": "kl_k1", "upper": math.log(3), "lower": -math.log(2)}, {CAP: 3.0, MIN: 0.5}),
        ({"metric": "kl_k2", "upper": math.log(4) ** 2 / 2}, {CAP: 4.0, MIN: 0.25}),
    ],
)
def test_bounds_become_keys(section: dict[str, Any], keys: dict[str, Any]) -> None:
    found = keys_of(section)
    assert found.keys() == keys.keys()
    for key, value in keys.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("section", "cap", "low"),
    [(None, 3.0, 0.5), ({"metric": "ratio", "upper": 2.0, "lower": 0.7}, 2.0, 0.7), ({"upper": 9.0}, 3.0, 0.5)],
)
def test_the_first_keys_of_icepop_bound_the_weight_as_well(section: Any, cap: float, low: float) -> None:
    more = {} if section is None else {"rejection_sampling": section}
    config, _ = converted(enable_icepop=True, icepop_alpha=0.5, icepop_beta=3.0, use_decoupled_loss=True, **more)
    assert (config.actor.behav_imp_weight_cap, config.actor.correction.min_weight) == (cap, low)


def test_a_bound_of_k3_is_one_on_either_side() -> None:
    # k3 = 1/w − 1 + ln w: 1 − ln 2 = 0.307 at w = 1/2, where the other root is w = 2.46.
    keys = keys_of({"metric": "kl_k3", "upper": 1 - math.log(2)})
    assert keys[MIN] == pytest.approx(0.5)
    assert 1 / keys[CAP] - 1 + math.log(keys[CAP]) == pytest.approx(1 - math.log(2))
    assert keys[CAP] > 1


@pytest.mark.parametrize("metric", ["kl_k1", "kl_k2", "kl_k3", "ratio"])
def test_huge_bounds_stay_finite(metric: str) -> None:
    assert math.isfinite(keys_of({"metric": metric, "upper": 1e300})[CAP])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (5.0, "is 5.0, not a section"),
        ({"metric": "kl"}, "metric is 'kl'; choose one of ratio, kl_k1"),
        ({"metric": "kl_k2", "level": "sequence"}, "metric is 'kl_k2' with level sequence"),
        ({"metric": "binary_kl", "action": "clamp"}, "level token and action clamp, which is not supported"),
        ({"metric": "binary_kl", "lower": 0.1}, "binary_kl has no lower bound"),
        ({"level": "sequence", "agg": "max"}, "agg is 'max', which is not supported"),
        ({"upper": "five"}, "upper is 'five'; write a number"),
        ({"upper": math.inf}, "upper is inf; write a number"),
        ({"upper": None}, "upper is None; write a number"),
        ({"upper": 0.9}, "even current tokens are bounded"),
        ({"lower": 1.5}, "even current tokens are bounded"),
    ],
)
def test_what_has_no_counterpart_is_refused(section: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keys_of(section)
    assert message in str(caught.value)
    assert "actor.rejection_sampling" in str(caught.value)


def test_a_converted_file_has_areals_bounds_and_a_note() -> None:
    config, notes = converted(use_decoupled_loss=True, rejection_sampling={"lower": 0.5, "upper": 4.0})
    assert (config.actor.behav_imp_weight_cap, config.actor.correction.min_weight) == (4.0, 0.5)
    assert any(note.startswith("actor.rejection_sampling: becomes actor.behav_imp_weight_cap 4") for note in notes)
    assert any(note.startswith("actor.correction.kl_penalty: missing") for note in notes)


def test_both_spellings_of_kpop_convert() -> None:
    old, _ = converted(use_decoupled_loss=True, enable_kpop=True, kpop_phi=1.5)
    new, _ = converted(use_decoupled_loss=True, rejection_sampling={"metric": "binary_kl", "upper": 1.5})
    assert old.actor.correction == new.actor.correction  # the file caps ratios at 4 as well
    assert (old.actor.behav_imp_weight_cap, new.actor.behav_imp_weight_cap) == (4.0, None)


def test_older_modes_are_levels_and_actions() -> None:
    config, _ = converted(
        use_decoupled_loss=True,
        rejection_sampling=None,
        behave_imp_weight_mode="sequence_truncate",
        behave_imp_weight_cap=3.0,
    )
    correction = config.actor.correction
    assert (correction.weight_level, correction.truncate, config.actor.behav_imp_weight_cap) == ("sequence", True, 3.0)


def test_bounds_without_the_decoupled_loss_are_dropped_with_a_note() -> None:
    config, notes = converted(use_decoupled_loss=False, rejection_sampling={"lower": 0.5})
    assert config.actor.correction.min_weight is None
    assert any("has no effect without use_decoupled_loss" in note for note in notes)
