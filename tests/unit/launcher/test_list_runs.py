"""`grpo list`."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher import cli
from support.ui_runs import make_run


def test_each_run_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "tiny/first", summary={"outcome": "succeeded"})
    make_run(tmp_path, "tiny/second", summary={"outcome": "failed", "error": "no \x1b[31mmemory"})
    assert cli.main(["list", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["tiny/first", "succeeded", "3/3", "1.000"]
    assert lines[2].split()[:4] == ["tiny/second", "failed", "3/3", "1.000"]
    assert "\x1b" not in lines[2]


def test_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no runs\n"


def test_a_missing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
