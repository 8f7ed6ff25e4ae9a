"""The tiny example: its files are what its scripts make, and its experiment is valid."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoConfig, AutoTokenizer

from areal_api.load import load_experiment

REPOSITORY = Path(__file__).resolve().parents[3]
TINY = REPOSITORY / "examples" / "tiny"


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_make_data", TINY / "make_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def problems(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (TINY / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["train", "test"])
def test_generator_writes_the_committed_bytes(make_data: ModuleType, tmp_path: Path, name: str) -> None:
    make_data.write_splits(tmp_path)
    committed = (TINY / "data" / f"{name}.jsonl").read_bytes()
    made = (tmp_path / f"{name}.jsonl").read_bytes()
    assert hashlib.sha256(made).hexdigest() == hashlib.sha256(committed).hexdigest()


def numbers_of(question: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", question))


def test_no_numbers_are_in_both_splits() -> None:
    train, test = ({numbers_of(problem["question"]) for problem in problems(name)} for name in ("train", "test"))
    assert not train & test


def test_no_question_occurs_twice() -> None:
    questions = [problem["question"] for name in ("train", "test") for problem in problems(name)]
    assert len(set(questions)) == len(questions) == 6144 + 256


def test_every_solution_is_right_and_ends_in_its_result() -> None:
    for problem in problems("train") + problems("test"):
        steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)\.", problem["answer"])
        for left, operation, right, result in steps:
            worked_out = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
            assert worked_out[operation] == int(result)
        assert problem["answer"].endswith(f"\n#### {steps[-1][3]}")


def test_every_word_is_a_token_and_prompts_are_short() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "model")
    for problem in problems("train") + problems("test"):
        message = [{"role": "user", "content": problem["question"]}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        solution = tokenizer(problem["answer"])["input_ids"]
        assert tokenizer.unk_token_id not in prompt + solution
        assert len(prompt) <= 32
        assert len(solution) + 1 <= 20


def test_completion_keeps_its_answer_readable() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "model")
    ids = tokenizer("12 + 5 = 17.\n#### 17")["input_ids"]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == "12 + 5 = 17 . #### 17"


def test_vocabulary_leaves_the_server_nothing_to_pad() -> None:
    config = AutoConfig.from_pretrained(TINY / "model")
    assert config.vocab_size == len(AutoTokenizer.from_pretrained(TINY / "model"))
    assert config.vocab_size % 64 == 0


def test_experiment_is_valid_and_its_files_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = load_experiment("examples/tiny/experiment.yaml").spec.config
    assert config.valid_dataset is not None
    for path in (config.actor.path, config.train_dataset.path, config.valid_dataset.path):
        assert Path(path).exists()


def test_two_by_two_is_the_same_experiment_with_two_servers_and_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    one, two = (load_experiment(f"examples/tiny/{name}.yaml") for name in ("experiment", "two-by-two"))
    assert (two.spec.servers.replicas, two.spec.trainer.ranks) == (2, 2)
    alike = {"experiment_name"}
    assert two.spec.config.model_dump(exclude=alike) == one.spec.config.model_dump(exclude=alike)
    assert two.spec.storage == one.spec.storage
