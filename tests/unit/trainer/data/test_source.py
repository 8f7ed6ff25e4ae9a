"""Datasets from files, directories, functions and the hub, and the errors for unusable ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from areal_api.data_config import DatasetConfig
from areal_trainer.data.dataset import PromptDataset, load_train_dataset, valid_rows
from support.word_tokenizer import word_tokenizer

ROWS = [
    {"question": "Two and three?", "answer": "#### 5"},
    {"question": 'He said "1,000",\nthen left.', "answer": "one\n#### 1"},
]


def load(path: Path | str, **settings: Any) -> PromptDataset:
    return load_train_dataset(DatasetConfig(path=str(path), **settings), word_tokenizer())


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
def test_every_file_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    found = list(load(save(tmp_path / f"rows{suffix}", ROWS), instruction="Box it."))
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
    assert len(load(tmp_path / "one")) == 2


def test_directory_of_splits_saved_by_datasets(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "both")
    assert len(load(tmp_path / "both")) == 2
    assert [row["task_id"] for row in valid_rows(DatasetConfig(path=str(tmp_path / "both")), word_tokenizer())] == [
        "test/0"
    ]
    with pytest.raises(ValueError, match=r"train_dataset\.path .*no split 'dev'; its splits are: train, test"):
        load(tmp_path / "both", split="dev")


def test_directory_with_one_file_per_split(tmp_path: Path) -> None:
    save(tmp_path / "train.jsonl", ROWS)
    assert len(load(tmp_path)) == 2
    with pytest.raises(ValueError, match=r"has no test\{.*it contains train\.jsonl"):
        valid_rows(DatasetConfig(path=str(tmp_path)), word_tokenizer())


def test_user_function_returns_all_rows() -> None:
    found = load("support.user_datasets:numbered", instruction="")
    assert [row["messages"][0]["content"] for row in found] == [f"train {n}" for n in range(6)]


def test_user_function_may_return_messages_without_answers() -> None:
    found = list(load("support.user_datasets:conversations", batch_size=3))
    assert len(found) == 3
    assert found[2] == {"messages": [{"role": "user", "content": "train 2"}], "task_id": "train/2"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (
            "support.user_datasets:demanding",
            "requires password; available arguments are: split, rank",
        ),
        ("support.user_datasets:text", "is str, not a datasets.Dataset or a list of dictionaries"),
        ("support.user_datasets:nothing", "no 'nothing'"),
        ("no.such.module:rows", "no module 'no'"),
        ("data/missing.jsonl", "no such file or directory"),
        ("/nowhere/rows", "no such file or directory"),
        ("a/b/c/d", "no such file or directory"),
    ],
)
def test_unusable_path_is_reported_with_the_reason(path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"train_dataset\.path is") as caught:
        load(path)
    assert reason in str(caught.value)


def test_unsupported_file_type_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(ValueError, match=r"\.txt are not supported; use one of \.jsonl"):
        load(tmp_path / "rows.txt")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", '{"question": "q", "answer": "1"}\n{"question"\n', "line 2 of .*a.jsonl is not valid JSON"),
        ("b.jsonl", "[1]\n", "line 1 of .*b.jsonl is list, not an object"),
        ("c.json", '"text"', "contains str, not a list"),
        ("d.parquet", "PAR", "d.parquet is not a parquet file"),
        ("e.jsonl", "\n", "e.jsonl has no rows"),
    ],
)
def test_malformed_file_is_reported_with_the_location(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        load(tmp_path / name)


def test_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments_of_call: dict[str, Any] = {}

    def unreachable(**arguments: Any) -> None:
        arguments_of_call.update(arguments)
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"'openai/gsm8k'.*hub.*cannot be reached \(Couldn't reach"):
        load("openai/gsm8k")
    assert arguments_of_call == {"path": "openai/gsm8k", "name": "main", "split": "train"}


def test_misspelt_directory_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such file or directory"):
        load("models/rows")
