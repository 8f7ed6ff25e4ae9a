"""Rows as prompts: columns, messages, length filter, limit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from areal_api.data_config import DatasetConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.data.dataset import PromptDataset, load_train_dataset
from areal_trainer.rollout.workflow import RLVRWorkflow
from support.word_tokenizer import word_tokenizer

ROWS = [{"question": "Two and three?", "answer": "#### 5"}, {"question": "One?", "answer": "#### 1"}]


def load(path: Path, **settings: Any) -> PromptDataset:
    return load_train_dataset(DatasetConfig(path=str(path), **settings), word_tokenizer())


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_missing_column_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", [{"problem": "q", "solution": "1", "level": 3}])
    with pytest.raises(ValueError, match="no column 'question'") as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "its columns are: problem, solution, level" in str(caught.value)
    with pytest.raises(ValueError, match=r"no column 'answer'.*Set train_dataset\.answer_column"):
        load(file, question_column="problem")
    [row] = load(file, question_column="problem", answer_column="solution", instruction="")
    assert row == {
        "messages": [{"role": "user", "content": "q"}],
        "answer": "1",
        "level": 3,
        "task_id": "train/0",
    }


def test_column_must_exist_in_every_row(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", ROWS)
    file.write_text(file.read_text() + '{"question": "q"}\n')
    with pytest.raises(ValueError, match="no column 'answer' in every row"):
        load(file)


def test_messages_of_a_row_are_kept_unchanged(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    file = save(tmp_path / "rows.jsonl", [{"messages": messages, "answer": 1, "id": 7}])
    [row] = load(file)
    assert (row["messages"], row["task_id"]) == (messages, "7")


def test_long_prompts_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # One token per word plus one for the generation prompt: 2, 3 and 4 tokens.
    rows = [{"question": question, "answer": "1"} for question in ("one", "one two", "one two three")]
    file = save(tmp_path / "rows.jsonl", rows)
    with caplog.at_level(logging.INFO, logger="areal_trainer.data.dataset"):
        found = load(file, max_length=3, instruction="")
    assert [row["task_id"] for row in found] == ["train/0", "train/1"]
    assert found.dropped == 1
    assert "dropped 1 longer than max_length (3 tokens)" in caplog.text
    with pytest.raises(ValueError, match=r"train_dataset\.max_length is 1 tokens and all 3 prompts"):
        load(file, max_length=1, instruction="")


def test_limit_uses_the_first_rows(tmp_path: Path) -> None:
    assert len(load(save(tmp_path / "rows.jsonl", ROWS), limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": None, "answer": "1"}, "'question' is null"),
        ({"question": "  ", "answer": "1"}, "'question' is empty"),
        ({"question": 7, "answer": "1"}, "'question' is int 7, not text"),
        ({"question": ["q"], "answer": "1"}, "'question' is list"),
        ({"question": True, "answer": "1"}, "'question' is bool"),
        ({"question": "q", "answer": None}, "'answer' is null"),
        ({"question": "q", "answer": "1", "messages": []}, "messages is"),
        ({"question": "q", "answer": "1", "messages": "hello"}, "messages is 'hello'"),
        (
            {"question": "q", "answer": "1", "messages": [{"role": "user", "content": None}]},
            "content of message 1 is None",
        ),
        ({"question": "q", "answer": "1", "messages": [{"content": "x"}]}, "message 1 is"),
        ({"question": "q", "answer": "1", "messages": [5]}, "message 1 is 5"),
    ],
)
def test_unusable_row_is_rejected_with_its_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    file = save(tmp_path / "rows.jsonl", [*ROWS, row])
    with pytest.raises(ValueError, match=r"train_dataset\.path is .*: line 3 of .*rows\.jsonl: ") as caught:
        load(file)
    assert reason in str(caught.value)
    assert len(load(file, limit=2)) == 2


def test_null_question_of_a_parquet_file_is_rejected_with_its_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([*ROWS, {"question": None, "answer": "2"}]).to_parquet(file)
    with pytest.raises(ValueError, match=r"row 3 of .*rows\.parquet: 'question' is null"):
        load(file)


def test_null_id_falls_back_to_the_row_number(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", [{**ROWS[0], "id": "007"}, {**ROWS[1], "id": None}])
    assert [row["task_id"] for row in load(file)] == ["007", "train/1"]


def test_row_with_null_messages_uses_its_question(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", [{**ROWS[0], "messages": None}])
    assert load(file, instruction="")[0]["messages"] == [{"role": "user", "content": "Two and three?"}]


THINKING = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if think %}one two three {% endif %}<say>"


def test_length_filter_measures_the_prompt_that_is_trained(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", [{"question": "one two", "answer": "1"}])
    tokenizer = word_tokenizer(chat_template=THINKING)
    config = DatasetConfig(path=str(file), max_length=5, instruction="")
    assert len(load_train_dataset(config, tokenizer)) == 1
    with pytest.raises(ValueError, match="all 1 prompts"):
        load_train_dataset(config, tokenizer, chat_template_kwargs={"think": True})

    def reward(**columns: Any) -> float:
        return 0.0

    for think, length in ((False, 3), (True, 6)):
        kwargs = {"think": think}
        workflow = RLVRWorkflow(reward, GenerationHyperparameters(), tokenizer, chat_template_kwargs=kwargs)
        dataset = load_train_dataset(
            config.model_copy(update={"max_length": length}), tokenizer, chat_template_kwargs=kwargs
        )
        assert len(workflow.tokenize(dataset[0])[1]) == length


def test_messages_that_the_template_rejects_are_named(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", ROWS)
    tokenizer = word_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"line 1 of .*chat template failed .*roles must alternate"):
        load_train_dataset(DatasetConfig(path=str(file), max_length=5), tokenizer)


def test_a_base_model_gets_plain_prompts(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", ROWS)
    plain = DatasetConfig(path=str(file), apply_chat_template=False, instruction="Think.", max_length=20)
    tokenizer = word_tokenizer(chat_template=None)
    rows = list(load_train_dataset(plain, tokenizer))
    assert [row["prompt"] for row in rows] == ["Two and three?\nThink.", "One?\nThink."]
    assert all("messages" not in row for row in rows)
    workflow = RLVRWorkflow(lambda *_, **__: 0.0, GenerationHyperparameters(), tokenizer)
    prompt, ids = workflow.tokenize(rows[0])
    assert (prompt, ids) == (rows[0]["prompt"], tokenizer.encode(rows[0]["prompt"]))


def test_messages_without_a_template_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "u"}], "answer": "1"}])
    with pytest.raises(ValueError, match=r"set train_dataset\.apply_chat_template=true"):
        load(file, apply_chat_template=False)
