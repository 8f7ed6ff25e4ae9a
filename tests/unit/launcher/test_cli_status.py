"""``grpo status --json`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_launcher import cli
from support.ui_runs import make_run


@pytest.mark.parametrize("place", ["local", "ray"])
def test_a_run_directory_is_one_line_of_json(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "r", summary={"outcome": "succeeded"})
    assert cli.main(["status", str(run), "--json", "--on", place]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["state"] == "succeeded"


@pytest.mark.parametrize("place", ["local", "slurm", "ray", "kubernetes"])
def test_json_needs_a_run(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--json", "--on", place]) == 2
    assert "--json prints the state of one run: give RUN" in capsys.readouterr().err
