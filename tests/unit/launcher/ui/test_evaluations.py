"""Two evaluations of a run on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.ui import evaluations
from areal_launcher.ui.sample_files import steps_in
from support.evaluation_files import answer, write_evaluation


def test_the_page_lists_what_became_better_and_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_evaluation(tmp_path, 0, *[answer(problem, 0.0) for problem in "abc"], answer("d", 1.0))
    write_evaluation(tmp_path, 20, *[answer(problem, 1.0) for problem in "abc"], answer("d", 0.0))
    assert steps_in(tmp_path / "evaluations") == [0, 20]
    monkeypatch.setattr(evaluations, "MAX_PROBLEMS", 2)
    (found,) = evaluations.comparison(tmp_path, 0, 20)["sets"]
    assert (found["n_better"], found["n_worse"], found["equal"]) == (3, 1, 0)
    assert [problem["key"] for problem in found["better"]] == ["c", "b"]
    assert (found["first"]["mean"], found["second"]["mean"]) == (0.25, 0.75)


def test_the_answers_to_a_problem_are_those_of_its_set(tmp_path: Path) -> None:
    write_evaluation(tmp_path, 0, answer("a", 0.0), answer("a", 1.0, set="other"), answer("a", 1.0, sample=1))
    found = evaluations.answers(tmp_path, 0, of="valid", problem="a")
    assert found["prompt"] == "What is a?"
    assert [one["completion"] for one in found["samples"]] == ["I say 0.0", "I say 1.0"]
    with pytest.raises(FileNotFoundError):
        evaluations.answers(tmp_path, 0, of="valid", problem="b")


def test_damaged_and_missing_evaluations_are_refused(tmp_path: Path) -> None:
    write_evaluation(tmp_path, 0, answer("a", 0.0)).write_bytes(b"PAR1PAR1")
    with pytest.raises(DamagedFileError, match=r"step0\.parquet is damaged"):
        evaluations.comparison(tmp_path, 0, 0)
    with pytest.raises(FileNotFoundError):
        evaluations.comparison(tmp_path, 1, 2)
