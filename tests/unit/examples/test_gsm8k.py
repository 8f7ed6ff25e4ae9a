"""examples/gsm8k: its files parse, its data and rewards are what they say, its script trains."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from areal_api.load import load_experiment
from areal_api.quantities import parse_quantity
from areal_trainer.data.dataset import load_train_dataset, valid_rows
from areal_trainer.reward.gsm8k import extract_solution, gsm8k_reward_fn
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY, save_tiny_model
from support.word_tokenizer import CHAT_TEMPLATE, word_tokenizer

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "gsm8k"


@pytest.fixture
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLE / "data" / f"{name}.jsonl").read_text().splitlines()]


def test_recipe_on_gpus_is_290_steps_of_1024_samples() -> None:
    spec = load_experiment(EXAMPLE / "experiment.yaml").spec
    config = spec.config
    assert 7473 // config.train_dataset.batch_size * config.total_train_epochs == 290
    assert config.train_dataset.batch_size * config.gconfig.n_samples == 1024
    assert (config.train_dataset.path, config.actor.path) == ("openai/gsm8k", "Qwen/Qwen2.5-1.5B-Instruct")
    assert config.max_staleness == 2
    assert (spec.servers.replicas, spec.trainer.ranks) == (4, 4)


def test_pods_on_gpus_have_limits_of_cpu_and_memory() -> None:
    spec = load_experiment(EXAMPLE / "experiment.yaml").spec
    for pod in (spec.servers, spec.trainer):
        for resource in ("cpu", "memory"):
            requested, limit = (parse_quantity(pod.resources[part][resource]) for part in ("requests", "limits"))
            assert 0 < requested <= limit


@pytest.mark.usefixtures("_in_the_repository")
def test_cpu_variant_needs_no_hub() -> None:
    spec = load_experiment(EXAMPLE / "cpu.yaml").spec
    config = spec.config
    assert (spec.servers.device, spec.trainer.device) == ("cpu", "cpu")
    assert config.valid_dataset is not None
    problems = load_train_dataset(config.train_dataset.model_copy(update={"max_length": None}), word_tokenizer())
    assert len(problems) >= config.train_dataset.batch_size * 3
    assert valid_rows(config.valid_dataset, word_tokenizer())
    assert Path(config.actor.path) == Path("examples/gsm8k/model")


def test_shipped_problems_come_with_their_licence_and_a_numeric_answer() -> None:
    assert "MIT License" in (EXAMPLE / "data" / "LICENSE").read_text()
    train, test = rows("train"), rows("test")
    assert min(len(train), len(test)) >= 100
    for row in train + test:
        assert set(row) == {"question", "answer"}
        float(str(extract_solution(row["answer"])))
    assert not {row["question"] for row in train} & {row["question"] for row in test}


def test_every_reference_solution_is_right_by_our_reward() -> None:
    for row in rows("train") + rows("test"):
        assert gsm8k_reward_fn("", row["answer"], [], [], row["answer"]) == 1.0


def test_format_reward_gives_a_fifth_for_a_wrong_number() -> None:
    reward = module("format_reward").format_reward
    completions = ["The answer is 5.", "The answer is 6 apples.", "The answer is unknown.", "It is 5."]
    assert [reward("", text, [], [], answer="2 + 3\n#### 5") for text in completions] == [1.0, 0.2, 0.0, 0.0]


def test_reward_of_the_script_compares_letters() -> None:
    reward = module("gsm8k_grpo").gsm8k_reward_fn
    assert [reward("", text, [], [], answer="#### 1,072") for text in (r"\boxed{1072}", r"\boxed{1072.0}", "")] == [
        1,
        0,
        0,
    ]


@pytest.mark.usefixtures("_in_the_repository")
def test_data_of_the_script_is_dealt_out_to_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    config = load_experiment(EXAMPLE / "cpu.yaml").spec.config.train_dataset.model_copy(update={"limit": 6})
    script = module("gsm8k_grpo")
    whole, *parts = (script.get_gsm8k_dataset(config, "train", rank, size) for rank, size in ((0, 1), (0, 2), (1, 2)))
    assert len(whole) == 6
    assert [part.column_names for part in parts] == [["answer", "messages"]] * 2
    assert [row["answer"] for part in parts for row in part] == whole["answer"]
    assert whole[0]["messages"][0]["content"].endswith(config.instruction)


@pytest.mark.usefixtures("_in_the_repository")
@pytest.mark.parametrize("async_training", [False, True])
def test_script_trains_evaluates_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, async_training: bool
) -> None:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = save_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(model)
    with ScriptedServer(Script(vocab_size=VOCABULARY, first_token_id=3)) as server:
        monkeypatch.setenv("AREAL_LLM_SERVER_ADDRS", server.address)
        monkeypatch.setenv("AREAL_DEVICE", "cpu")
        monkeypatch.setenv("AREAL_RUN_DIR", str(tmp_path / "run"))
        overrides = {
            "actor.path": model,
            "actor.max_logprob_diff": 1e9,  # the server makes its log-probs up
            "gconfig.max_new_tokens": 8,
            "total_train_steps": 2,
            "valid_dataset.limit": 3,
            "async_training": str(async_training).lower(),
        }
        arguments = [
            "--config",
            str(EXAMPLE / "cpu.yaml"),
            *(f"config.{key}={value}" for key, value in overrides.items()),
        ]
        module("gsm8k_grpo").main(arguments)
        assert server.weight_version == "v2"
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["task_reward/avg"] == 0.0 for line in lines)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["outcome"] == "succeeded"
    assert (summary["steps"], summary["eval_first"], summary["eval_last"]) == (2, 0.0, 0.0)
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    AutoModelForCausalLM.from_pretrained(checkpoint)
