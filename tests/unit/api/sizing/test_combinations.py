"""Settings that a model forbids, and settings without effect."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.combinations import (
    combination_problems,
    layout_warnings,
    tensor_parallel_sizes,
    useless_settings,
)
from areal_api.sizing.model_shape import ModelShape
from benchmarks.memory import qwen25

SHAPE = ModelShape.of_config(qwen25("Qwen2.5-7B"))  # 28 heads, 4 key-value heads of size 128


def spec(config: dict[str, Any] | None = None, **sections: Any) -> ExperimentSpec:
    merged = {
        "experiment_name": "e",
        "actor": {"path": "m"},
        "train_dataset": {"path": "d", "batch_size": 8},
        "gconfig": {"n_samples": 4},
        **(config or {}),
    }
    return ExperimentSpec.model_validate({"config": merged, **sections})


def actor(**values: Any) -> dict[str, Any]:
    return {"actor": {"path": "m", **values}}


def test_an_ordinary_experiment_has_neither_problem_nor_useless_setting() -> None:
    assert list(combination_problems(spec(), SHAPE)) == []
    assert list(useless_settings(spec())) == []


def test_heads_divide_over_gpus_and_key_value_heads_divide_or_are_replicated() -> None:
    assert tensor_parallel_sizes(28, 4) == [1, 2, 4, 28]
    (problem,) = combination_problems(spec(servers={"tensorParallel": 8}), SHAPE)
    assert problem.endswith("set it to one of 1, 2, 4, 28")


@pytest.mark.parametrize(
    ("keys", "kind", "reason"),
    [
        ({"parallel": {"tensor": 4, "context": 2}}, "qwen2", "tensor 4 × context 2, which does not divide"),
        ({"parallel": {"tensor": 7}}, "qwen2", "tensor is 7, which does not divide the model's key-value heads 4"),
        ({"parallel": {"tensor": 2}}, "phi3", "no plan that the trainer can follow for dividing the layers of phi3"),
        ({"parallel": {"tensor": 2}, "lora": {}}, "qwen2", "adapters (actor.lora) are not divided"),
        ({"parallel": {"expert": 4}}, "qwen2", "expert is 4, which does not divide the model's 0 experts"),
        ({"parallel": {"context": 2}, "attn_impl": "eager"}, "qwen2", "but actor.attn_impl is eager"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused_by_name(
    keys: dict[str, Any], kind: str, reason: str
) -> None:
    parallel = {"tensor": 1, "context": 1, "expert": 1} | keys["parallel"]
    ranks = math.prod(parallel.values())
    problems = list(
        combination_problems(spec(actor(**keys), trainer={"processesPerNode": ranks}), replace(SHAPE, kind=kind))
    )
    assert any(reason in problem for problem in problems), problems


def test_tensor_parallel_ranks_on_several_nodes_are_warned_of() -> None:
    keys = actor(parallel={"tensor": 2})
    (warning,) = layout_warnings(spec(keys, trainer={"nodes": 2, "processesPerNode": 1}))
    assert "does not divide the 1 ranks of a node" in warning
    assert list(layout_warnings(spec(keys, trainer={"nodes": 2, "processesPerNode": 2}))) == []


def test_a_layout_that_divides_the_model_is_accepted() -> None:
    keys = actor(parallel={"tensor": 2, "context": 2})
    assert list(combination_problems(spec(keys, trainer={"processesPerNode": 4}), SHAPE)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "hrm_text"}, "other tensor names in memory than in its checkpoint"),
        ({"kind": "gptj"}, "a bias of the output embedding"),
        ({"kind": "granite", "logit_changes": ("logits_scaling",)}, "logits_scaling, which the trainer does not"),
    ],
)
def test_a_model_that_the_trainer_refuses_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    (problem,) = combination_problems(spec(), replace(SHAPE, **changes))
    assert reason in problem
    assert "choose another model" in problem


def test_a_model_that_is_only_trained_with_padding_names_the_setting() -> None:
    (problem,) = combination_problems(spec(), replace(SHAPE, kind="gpt_oss"))
    assert problem.endswith("set config.actor.attn_impl=eager")
    assert list(combination_problems(spec(actor(attn_impl="eager")), replace(SHAPE, kind="gpt_oss"))) == []


@pytest.mark.parametrize(
    ("values", "device", "expected"),
    [
        ({"attn_impl": "varlen"}, "cpu", "set config.actor.attn_impl=sdpa"),
        ({"attn_impl": "flash_attention_2", "dtype": "float32"}, "cuda", "set config.actor.dtype=bfloat16"),
    ],
)
def test_attention_that_the_device_or_type_forbids_is_named(values: dict[str, Any], device: str, expected: str) -> None:
    (problem,) = combination_problems(spec(actor(**values), trainer={"device": device}), SHAPE)
    assert problem.endswith(expected)


def test_heads_that_the_default_kernel_does_not_take_are_refused_on_cuda_alone() -> None:
    odd = replace(SHAPE, head_dim=100)
    (problem,) = combination_problems(spec(trainer={"device": "cuda"}), odd)
    assert "heads have size 100" in problem
    assert list(combination_problems(spec(trainer={"device": "cpu"}), odd)) == []
    assert list(combination_problems(spec(actor(attn_impl="sdpa"), trainer={"device": "cuda"}), odd)) == []


def test_checkpointing_of_more_layers_than_the_model_has_is_refused() -> None:
    (problem,) = combination_problems(spec(actor(checkpoint_every=SHAPE.layers + 1)), SHAPE)
    assert f"checkpoint_every is {SHAPE.layers + 1}, but the model has {SHAPE.layers} layers" in problem


@pytest.mark.parametrize(
    ("config", "sections", "expected"),
    [
        (actor(fsdp={"offload_params": True}), {"trainer": {"device": "cpu"}}, "offload_params has no effect"),
        (actor(checkpoint_every=2), {"trainer": {"device": "cpu"}}, "checkpoint_every has no effect"),
        (actor(offload_activations=True), {"trainer": {"device": "cpu"}}, "offload_activations has no effect"),
        (actor(optimizer={"offload": True}), {"trainer": {"device": "cpu"}}, "optimizer.offload has no effect"),
        (actor(fsdp={"reshard_after_forward": False}), {}, "reshard_after_forward has no effect"),
        ({"ref": {"path": "r"}}, {}, "ref has no effect"),
        ({"evaluator": {"freq_steps": 5}}, {}, "evaluator has no effect"),
        (
            {"valid_dataset": {"path": "v"}, "eval_gconfig": {"n_samples": 4, "greedy": True}},
            {},
            "evaluation of valid_dataset draws 4 samples per problem greedily",
        ),
    ],
)
def test_a_setting_without_effect_is_named(config: dict[str, Any], sections: dict[str, Any], expected: str) -> None:
    (warning,) = useless_settings(spec(config, **sections))
    assert expected in warning
