"""Files of other algorithms are refused with one reason; keys of AReaL's scripts are dropped with a note."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.areal_config.convert import convert
from areal_api.areal_config.scripts import convert_workflow, drop_script_keys, other_algorithm
from areal_api.areal_config.tree import Notes, set_in
from areal_api.errors import ConfigError


def converted_workflow(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    notes = Notes()
    convert_workflow(config, notes)
    return config, notes.lines()


@pytest.mark.parametrize(
    ("key", "value", "algorithm"),
    [
        ("train_dataset.type", "sft", "supervised fine-tuning"),
        ("train_dataset.type", "dpo", "direct preference optimization"),
        ("train_dataset.type", "rw", "a reward model"),
        ("actor.is_critic", True, "a reward model"),
        ("critic", {"path": "x"}, "PPO with a critic"),
        ("teacher", {"path": "x"}, "distillation"),
        ("actor.self_distillation", {"path": "x"}, "distillation"),
        ("train_dataset.type", "gsm8k-sft", "supervised fine-tuning"),
    ],
)
def test_another_algorithm_is_the_only_reason_given(key: str, value: Any, algorithm: str) -> None:
    config: dict[str, Any] = {"experiment_name": "x", "allocation_mode": "sglang:d1|d1", "actor": {"use_lora": True}}
    set_in(config, key, value)
    with pytest.raises(ConfigError) as caught:
        convert(config, source="f.yaml")
    assert str(caught.value).startswith(f"f.yaml: {key} is ")
    assert algorithm in str(caught.value)
    assert "allocation_mode" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"env_vars": {"NCCL_DEBUG": "WARN"}}, "does not train a policy"),
        ({"allocation_mode": "sglang.d4m2p1+d4m2p1", "actor": {"type": {"_class": "qwen3"}}}, "before its rewrite"),
    ],
)
def test_a_file_that_is_no_configuration_of_ours_gets_one_reason(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        convert(config, source="f.yaml")
    assert "problems" not in str(caught.value)


def test_grpo_is_no_other_algorithm() -> None:
    assert other_algorithm({"actor": {"path": "${model}"}, "train_dataset": {"type": "rl"}}) is None
    assert other_algorithm({"train_dataset": {"type": "rl"}, "critic": None, "teacher": None}) is None


def test_a_workflow_of_a_script_is_an_import_path() -> None:
    config, notes = converted_workflow({"workflow": "my.agents.Search", "eval_workflow": "my.agents.Search"})
    assert config == {"workflow": {"path": "my.agents:Search"}}
    assert notes == ["eval_workflow: evaluation uses the workflow of training", "workflow: becomes workflow.path"]


def test_the_workflow_of_single_answers_is_the_default() -> None:
    assert converted_workflow({"workflow": "areal.workflow.rlvr.RLVRWorkflow"})[0] == {}


def test_a_workflow_of_areals_package_needs_that_package() -> None:
    config, notes = converted_workflow({"workflow": "areal.workflow.langchain.math_agent.MathAgent"})
    assert config == {"workflow": {"path": "areal.workflow.langchain.math_agent:MathAgent"}}
    assert "the trainer needs the package areal" in notes[0]


@pytest.mark.parametrize(
    ("key", "value", "dropped"),
    [
        ("max_turns", 10, True),
        ("econfig", {"domain": "airline", "solo_mode": False}, True),
        ("judge_engine", {"path": "x"}, True),
        ("model_path", "Qwen/Qwen3-1.7B", True),
        ("gconfg", {"n_samples": 4}, False),
        ("actr", {"path": "x"}, False),
        ("total_train_epoch", 3, False),
        ("seeed", 3, False),
        ("tokenizer_pth", "x", False),
    ],
)
def test_keys_of_a_script_are_dropped_and_typos_are_not(key: str, value: Any, dropped: bool) -> None:
    config, notes = {key: value}, Notes()
    drop_script_keys(config, notes)
    assert (key not in config) == dropped
    assert bool(notes.lines()) == dropped
