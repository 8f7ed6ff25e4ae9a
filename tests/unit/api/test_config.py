"""The configuration models: AReaL's defaults, frozen, unknown keys refused."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from areal_api.actor import NormConfig, PPOActorConfig
from areal_api.areal_config.tree import set_in
from areal_api.config import GRPOConfig, SGLangConfig
from areal_api.data_config import ValidDatasetConfig
from areal_api.experiment import ExperimentSpec
from areal_api.generation import GenerationHyperparameters
from areal_api.keys import fields


def config(**changes: object) -> GRPOConfig:
    data = {"experiment_name": "e", "actor": {"path": "m", "ppo_n_minibatches": 1}, "train_dataset": {"path": "d"}}
    return GRPOConfig.model_validate({**data, **changes})


def test_defaults_are_areals() -> None:
    actor, gconfig = PPOActorConfig(), GenerationHyperparameters()
    assert (actor.reward_bias, actor.reward_scaling, actor.reward_clip) == (-0.5, 10.0, 20.0)
    assert (actor.eps_clip, actor.ppo_n_minibatches, actor.behav_imp_weight_cap) == (0.2, 4, 5.0)
    assert (actor.discount, actor.gae_lambda, actor.kl_estimator) == (1.0, 1.0, "k1")
    assert (actor.optimizer.lr, actor.optimizer.weight_decay, actor.optimizer.beta2) == (1e-3, 0.01, 0.999)
    assert (gconfig.n_samples, gconfig.max_new_tokens, gconfig.top_k) == (1, 16384, 100_000_000)
    assert NormConfig() == NormConfig(mean_level="batch", std_level="batch", std_unbiased=True, eps=1e-5)
    assert (config().rollout.setup_timeout, config().rollout.request_retries) == (None, 3)


@pytest.mark.parametrize(
    ("asynchronous", "staleness", "penalty", "expected"),
    [
        (True, 2, None, 0.5),
        (True, 0, None, 0.0),
        (False, 2, None, 0.0),
        (False, 2, 0.1, 0.1),
        (True, 2, 0.0, 0.0),
    ],
)
def test_asynchronous_training_has_a_kl_penalty_by_default(
    asynchronous: bool, staleness: int, penalty: float | None, expected: float
) -> None:
    actor = {"path": "m", "ppo_n_minibatches": 1, "correction": {"kl_penalty": penalty}}
    resolved = config(async_training=asynchronous, rollout={"max_head_offpolicyness": staleness}, actor=actor)
    assert resolved.kl_penalty == expected


def test_held_out_problems_are_taken_in_order_and_all() -> None:
    assert (ValidDatasetConfig().shuffle, ValidDatasetConfig().drop_last) == (False, False)
    assert (config().train_dataset.shuffle, config().train_dataset.drop_last) == (True, True)


def test_a_configuration_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().actor.path = "other"  # type: ignore[misc]


def test_unknown_keys_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValidationError, match=r"unknown key 'pth' in PPOActorConfig, did you mean 'path'\?"):
        config(actor={"pth": "m"})


def test_every_unknown_key_of_a_section_is_named() -> None:
    with pytest.raises(ValidationError, match=r"'n_sample'.*'n_samples'.*'topp'.*'top_p'"):
        GenerationHyperparameters.model_validate({"n_sample": 1, "topp": 1})


def test_every_key_is_described() -> None:
    assert [key for key, field, _ in fields(GRPOConfig) if not field.description] == []


def test_a_step_trains_on_one_batch_of_prompts() -> None:
    assert config(train_dataset={"path": "d", "batch_size": 6}).consumer_batch_size == 6


def test_synchronous_training_has_no_staleness() -> None:
    rollout = {"max_head_offpolicyness": 2}
    assert config(rollout=rollout).max_staleness == 2
    assert config(rollout=rollout, async_training=False).max_staleness == 0


def test_evaluation_samples_once_at_a_lower_temperature() -> None:
    evaluation = config(gconfig={"n_samples": 4, "max_new_tokens": 7}).evaluation
    assert (evaluation.n_samples, evaluation.temperature, evaluation.max_new_tokens) == (1, 0.6, 7)


def test_every_sampling_setting_is_known_to_keep_the_distribution_or_is_refused_in_training() -> None:
    keeps = {"n_samples", "max_new_tokens", "max_tokens", "stop", "stop_token_ids", "ignore_eos", "skip_special_tokens"}
    refused = {"min_new_tokens": 1, "greedy": True, "temperature": 0, "top_p": 0.5, "top_k": 5, "frequency_penalty": -1}
    assert set(GenerationHyperparameters.model_fields) == keeps | set(refused)
    assert GenerationHyperparameters(temperature=0.3, ignore_eos=True, stop=["x"]).untrainable() == []
    for name, value in refused.items():
        [problem] = GenerationHyperparameters.model_validate({name: value}).untrainable()
        assert problem.startswith(f"{name} is ")


def test_new_parameters_are_validated() -> None:
    with pytest.raises(ValidationError, match="above max_new_tokens 4"):
        GenerationHyperparameters(max_new_tokens=8).new(min_new_tokens=5, max_new_tokens=4)


FLOATS = [
    (model, key, field)
    for model in (GRPOConfig, ExperimentSpec)
    for key, field, _ in fields(model)
    if float in (field.annotation, *get_args(field.annotation))
]


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, "inf", "nan"])
def test_no_number_of_the_configuration_may_be_infinite_or_nan(number: float | str) -> None:
    assert len(FLOATS) > 30
    for model, key, _ in FLOATS:
        data: dict[str, Any] = {}
        set_in(data, key, number)
        with pytest.raises(ValidationError) as caught:
            model.model_validate(data)
        [found] = [e for e in caught.value.errors() if ".".join(map(str, e["loc"])) == key]
        assert found["type"] in ("finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal")


def test_a_number_is_accepted_where_a_text_is_wanted() -> None:
    assert config(trial_name=3).trial_name == "3"


def test_the_sglang_section_has_no_translated_names() -> None:
    assert {"model_path", "mem_fraction_static", "attention_backend"} < set(SGLangConfig.keys())
    assert all(key == name for key, name in SGLangConfig.keys().items())
