"""Data sets from files, directories, functions and the hub; and what is said where they cannot be used."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from areal_api.config import DatasetConfig
from areal_trainer.data.dataset import Problems, train_problems, valid_rows
from areal_trainer.data.tokenizer import load_hf_tokenizer
from support.word_tokenizer import word_tokenizer

ROWS = [
    {"question": "Two and three?", "answer": "#### 5"},
    {"question": 'He said "1,000",\nthen left.', "answer": "one\n#### 1"},
]


def problems(path: Path | str, **settings: Any) -> Problems:
    return train_problems(DatasetConfig(path=str(path), **settings), word_tokenizer())


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = datasets.Dataset.from_list(rows)
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
        case ".json":
            path.write_text(json.dumps({"data": rows}))
        case ".parquet":
            table.to_parquet(path)
        case ".csv":
            table.to_csv(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_kind_of_file_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    found = list(problems(save(tmp_path / f"rows{suffix}", ROWS), instruction="Box it."))
    assert found == [
        {
            "messages": [{"role": "user", "content": "Two and three?\nBox it."}],
            "answer": "#### 5",
            "task_id": "train/0",
        },
        {
            "messages": [{"role": "user", "content": 'He said "1,000",\nthen left.\nBox it.'}],
            "answer": "one\n#### 1",
            "task_id": "train/1",
        },
    ]


def test_directory_saved_by_datasets(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert len(problems(tmp_path / "one")) == 2


def test_directory_of_splits_saved_by_datasets(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "both")
    assert len(problems(tmp_path / "both")) == 2
    assert [row["task_id"] for row in valid_rows(DatasetConfig(path=str(tmp_path / "both")), word_tokenizer())] == [
        "test/0"
    ]
    with pytest.raises(ValueError, match=r"train_dataset\.path .*no split 'dev'; its splits are: train, test"):
        problems(tmp_path / "both", split="dev")


def test_directory_with_a_file_a_split(tmp_path: Path) -> None:
    save(tmp_path / "train.jsonl", ROWS)
    assert len(problems(tmp_path)) == 2
    with pytest.raises(ValueError, match=r"has no test\{.*it holds train\.jsonl"):
        valid_rows(DatasetConfig(path=str(tmp_path)), word_tokenizer())


def test_own_function_gives_all_rows_and_the_loader_deals_them_out() -> None:
    found = problems("support.user_datasets:numbered", instruction="")
    assert [row["messages"][0]["content"] for row in found] == [f"train {n}" for n in range(6)]


def test_own_function_may_give_messages_and_no_answer() -> None:
    found = list(problems("support.user_datasets:conversations", batch_size=3))
    assert len(found) == 3
    assert found[2] == {"messages": [{"role": "user", "content": "train 2"}], "task_id": "train/2"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("support.user_datasets:demanding", "wants password; it can have: split, rank, world_size, tokenizer, config"),
        ("support.user_datasets:text", "is str, not a datasets.Dataset or a list of dictionaries"),
        ("support.user_datasets:nothing", "no 'nothing'"),
        ("no.such.module:rows", "no module 'no'"),
        ("data/missing.jsonl", "no such file or directory"),
        ("/nowhere/rows", "no such file or directory"),
        ("a/b/c/d", "no such file or directory"),
    ],
)
def test_unusable_path_is_named_with_the_reason(path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"train_dataset\.path is") as caught:
        problems(path)
    assert reason in str(caught.value)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(ValueError, match=r"\.txt are not read; use one of \.jsonl"):
        problems(tmp_path / "rows.txt")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", '{"question": "q", "answer": "1"}\n{"question"\n', "line 2 of .*a.jsonl is not JSON"),
        ("b.jsonl", "[1]\n", "line 1 of .*b.jsonl is list, not an object"),
        ("c.json", '"text"', "holds str, not a list"),
        ("d.parquet", "PAR", "d.parquet is not a parquet file"),
        ("e.jsonl", "\n", "e.jsonl has no rows"),
    ],
)
def test_broken_file_is_named_with_the_place(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        problems(tmp_path / name)


def test_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", [{"problem": "q", "solution": "1", "level": 3}])
    with pytest.raises(ValueError, match="no column 'question'") as caught:
        problems(file)
    assert str(file) in str(caught.value)
    assert "its columns are: problem, solution, level" in str(caught.value)
    with pytest.raises(ValueError, match=r"no column 'answer'.*Set train_dataset\.answer_column"):
        problems(file, question_column="problem")
    [row] = problems(file, question_column="problem", answer_column="solution", instruction="")
    assert row == {
        "messages": [{"role": "user", "content": "q"}],
        "answer": "1",
        "level": 3,
        "task_id": "train/0",
    }


def test_column_must_be_in_every_row(tmp_path: Path) -> None:
    file = save(tmp_path / "rows.jsonl", ROWS)
    file.write_text(file.read_text() + '{"question": "q"}\n')
    with pytest.raises(ValueError, match="no column 'answer' in every row"):
        problems(file)


def test_messages_of_a_row_are_taken_as_they_are(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    file = save(tmp_path / "rows.jsonl", [{"messages": messages, "answer": 1, "id": 7}])
    [row] = problems(file)
    assert (row["messages"], row["task_id"]) == (messages, "7")


def test_long_prompts_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # A word is a token, and the opening of the answer one more: 2, 3 and 4 tokens.
    rows = [{"question": question, "answer": "1"} for question in ("one", "one two", "one two three")]
    file = save(tmp_path / "rows.jsonl", rows)
    with caplog.at_level(logging.INFO, logger="areal_trainer.data.dataset"):
        found = problems(file, max_length=3, instruction="")
    assert [row["task_id"] for row in found] == ["train/0", "train/1"]
    assert found.dropped == 1
    assert "1 prompts over max_length (3 tokens) dropped" in caplog.text
    with pytest.raises(ValueError, match=r"train_dataset\.max_length is 1 tokens and all 3 prompts"):
        problems(file, max_length=1, instruction="")


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    assert len(problems(save(tmp_path / "rows.jsonl", ROWS), limit=1)) == 1


def test_hub_that_cannot_be_reached_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def unreachable(**arguments: Any) -> None:
        asked.update(arguments)
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"'openai/gsm8k'.*hub.*cannot be reached \(Couldn't reach"):
        problems("openai/gsm8k")
    assert asked == {"path": "openai/gsm8k", "name": "main", "split": "train"}


def test_misspelt_directory_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such directory"):
        load_hf_tokenizer("models/tiny")
    with pytest.raises(ValueError, match="no such file or directory"):
        problems("models/rows")


def test_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        load_hf_tokenizer(str(tmp_path / "missing"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no tokenizer that transformers can read; it holds notes\.txt"):
        load_hf_tokenizer(str(tmp_path))


def test_tokenizer_without_padding_token_pads_with_its_end(tmp_path: Path) -> None:
    word_tokenizer().save_pretrained(tmp_path)
    assert load_hf_tokenizer(str(tmp_path)).pad_token == "<end>"


def test_tokenizer_without_chat_template_is_refused(tmp_path: Path) -> None:
    config = DatasetConfig(path=str(save(tmp_path / "rows.jsonl", ROWS)))
    with pytest.raises(ValueError, match="no chat template"):
        train_problems(config, word_tokenizer(chat_template=None))
