"""Rows as prompts: columns, messages, length filter, limit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from areal_api.config import DatasetConfig
from areal_trainer.data.dataset import PromptDataset, load_train_dataset
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
