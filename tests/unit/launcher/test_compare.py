"""Two evaluations, problem by problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from areal_launcher import parquet_files
from areal_launcher.cli import main

TYPES = {"sample": pa.int32(), "reward": pa.float64(), "completion_tokens": pa.int32(), "version": pa.int32()}
NAMES = (
    "set",
    "problem",
    "task_id",
    "sample",
    "reward",
    "answer",
    "finish_reason",
    "prompt",
    "completion",
    "completion_tokens",
    "version",
)
SCHEMA = pa.schema([(name, TYPES.get(name, pa.string())) for name in NAMES])


def row(problem: str, reward: float, **changes: Any) -> dict[str, Any]:
    return {
        "set": "valid",
        "problem": problem,
        "task_id": "",
        "sample": 0,
        "reward": reward,
        "answer": None,
        "finish_reason": "stop",
        "prompt": f"What is {problem}?",
        "completion": "?",
        "completion_tokens": 1,
        "version": 0,
    } | changes


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
    return file


def compared(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> Any:
    assert main(["compare", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_change_is_paired_by_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(
        tmp_path / "a.parquet", [row("x", 0.0), row("x", 1.0), row("y", 1.0), row("z", 0.0), row("old", 1.0)]
    )
    second = written(tmp_path / "b.parquet", [row("x", 1.0), row("y", 0.0), row("z", 0.0)])
    (found,) = compared(capsys, first, second)["sets"]
    assert (found["first"]["mean"], found["second"]["mean"]) == (0.5, pytest.approx(1 / 3))
    # The changes are 0.5, −1 and 0: their standard deviation is √(7/12).
    assert found["change"]["mean"] == pytest.approx(-1 / 6)
    assert found["change"]["half_width"] == pytest.approx(1.959964 * (7 / 12) ** 0.5 / 3**0.5)
    assert [problem["name"] for problem in found["better"]] == ["What is x?"]
    assert [problem["name"] for problem in found["worse"]] == ["What is y?"]
    assert (found["equal"], found["only_first"], found["only_second"]) == (1, 1, 0)


def test_a_run_stands_for_its_newest_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, reward in ((5, 0.0), (10, 0.5), (9, 0.25)):
        written(tmp_path / "evaluations" / f"step{step}.parquet", [row("x", reward)])
    found = compared(capsys, tmp_path / "evaluations" / "step5.parquet", tmp_path)
    assert found["second"].endswith("evaluations/step10.parquet")
    assert found["sets"][0]["change"] == {"mean": 0.5, "half_width": None}


def test_the_table_names_the_problems_that_changed_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J[red]" + "x" * 1000
    first = written(tmp_path / "a.parquet", [row(str(n), 0.0, prompt=hostile) for n in range(12)])
    second = written(tmp_path / "b.parquet", [row(str(n), n / 12, prompt=hostile) for n in range(12)])
    assert main(["compare", str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    assert "valid, better: 11" in shown
    assert "1 more; --json lists all" in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("missing.parquet", "missing.parquet does not exist"),
        ("empty", "empty has no evaluation"),
        ("text.parquet", "text.parquet is damaged"),
        ("columns.parquet", "columns.parquet was not written by this version"),
        ("other.parquet", "no problem in common"),
        ("nan.parquet", "nan.parquet is damaged: a reward is nan"),
        ("null.parquet", "a sample lacks a value"),
    ],
)
def test_what_cannot_be_compared_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str, message: str
) -> None:
    first = written(tmp_path / "a.parquet", [row("x", 0.0)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("not parquet")
    pq.write_table(pa.table({"set": ["valid"]}), tmp_path / "columns.parquet")
    written(tmp_path / "other.parquet", [row("y", 0.0)])
    written(tmp_path / "nan.parquet", [row("x", float("nan"))])
    written(tmp_path / "null.parquet", [row("x", 0.0, prompt=None)])
    assert main(["compare", str(first), str(tmp_path / second)]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_files_beyond_the_bounds_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "a.parquet", [row(str(n), 0.0) for n in range(11)])
    monkeypatch.setattr(parquet_files, "MAX_ROWS", 10)
    assert main(["compare", str(file), str(file)]) == 2
    assert "more than 10 samples" in capsys.readouterr().err
