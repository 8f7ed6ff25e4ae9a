"""Benchmarks of ``grpo eval``: rows in the columns of MATH-500 and AIME, through the real loader and grader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from areal_api import names
from areal_launcher import cli
from areal_launcher.benchmark_sets import BENCHMARKS, ChosenBenchmark
from areal_launcher.places.local.evaluate import evaluation_experiment
from areal_trainer.data.dataset import valid_rows
from areal_trainer.reward.gsm8k import gsm8k_reward_fn
from support.local_runs import load
from support.word_tokenizer import word_tokenizer

MATH500 = [
    {
        "problem": "Convert the point $(0,3)$ to polar coordinates.",
        "solution": "We have $r = 3$.",
        "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
        "subject": "Precalculus",
        "level": 2,
        "unique_id": "test/precalculus/807.json",
    },
    {
        "problem": "What is $7/2 + 1/6 + 1$?",
        "solution": "Add them.",
        "answer": "\\frac{14}{3}",
        "subject": "Algebra",
        "level": 3,
        "unique_id": "test/algebra/1.json",
    },
]
AIME = [{"id": 60, "problem": "Find the walk's time.", "solution": "…", "answer": "204", "url": "x", "year": "2024"}]


def saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(experiment_path: Path, benchmark: str) -> list[dict[str, Any]]:
    experiment = evaluation_experiment(load(experiment_path), "a/model", ChosenBenchmark.parse(benchmark))
    config = experiment.spec.config.valid_dataset
    assert config is not None
    return list(valid_rows(config, word_tokenizer()))


@pytest.mark.parametrize(
    ("name", "rows", "right", "wrong"),
    [
        (
            "math500",
            MATH500,
            ["\\boxed{(3, \\frac{\\pi}{2})}", "\\boxed{14/3}"],
            ["\\boxed{(3, \\pi)}", "\\boxed{13/3}"],
        ),
        ("aime24", AIME, ["\\boxed{204}"], ["204 or \\boxed{205}"]),
        ("aime25", AIME, ["The answer is 204."], ["no answer"]),
    ],
)
def test_a_file_in_the_columns_of_a_benchmark_is_graded(
    experiment_path: Path, tmp_path: Path, name: str, rows: list[dict[str, Any]], right: list[str], wrong: list[str]
) -> None:
    found = rows_of(experiment_path, f"{name}={saved(tmp_path / 'rows.jsonl', rows)}")
    assert [row["messages"][0]["content"].splitlines()[0] for row in found] == [row["problem"] for row in rows]
    for row, good, bad in zip(found, right, wrong, strict=True):
        assert gsm8k_reward_fn("", good, [], [], row["answer"]) == 1.0
        assert gsm8k_reward_fn("", bad, [], [], row["answer"]) == 0.0


def test_a_benchmark_replaces_problems_reward_and_workflow(experiment_path: Path) -> None:
    experiment = load(experiment_path, "config.evaluator.solved_reward=3", "config.valid_dataset.limit=7")
    before = experiment.spec.config
    after = evaluation_experiment(experiment, "a/model", ChosenBenchmark("math500")).spec.config
    assert after.valid_dataset is not None
    assert (after.valid_dataset.path, after.valid_dataset.split) == ("HuggingFaceH4/MATH-500", "test")
    assert (after.valid_dataset.question_column, after.valid_dataset.limit) == ("problem", 7)
    assert after.reward.path == "areal_trainer.reward.gsm8k:gsm8k_reward_fn"
    assert after.evaluator.solved_reward == 1.0
    assert after.eval_gconfig == before.eval_gconfig


def test_an_unknown_benchmark_or_file_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(tmp_path), "--benchmark", "math501"]) == 2
    assert f"unknown name 'math501'; known are {', '.join(BENCHMARKS)}" in capfd.readouterr().err
    assert cli.main(["eval", str(tmp_path), "--benchmark", f"math500={tmp_path}/none.jsonl"]) == 2
    assert "none.jsonl is not a file; give a jsonl" in capfd.readouterr().err


def test_the_documents_list_every_benchmark() -> None:
    text = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    help_text = cli.eval_parser().format_help()
    for name, one in BENCHMARKS.items():
        config = f"`{one.path}`" + (f", configuration `{one.config}`" if one.config else "")
        assert f"| `{name}` | {config} | `{one.split}` | `{one.question_column}` | `{one.answer_column}` |" in text
        assert name in help_text
    assert names.evaluations_dir(Path("eval/<checkpoint>-<name>")).as_posix() in text
