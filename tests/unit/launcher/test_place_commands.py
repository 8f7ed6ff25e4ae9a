"""The commands of ``grpo`` in each place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from areal_launcher import cli
from areal_launcher import places as folders
from areal_launcher.place_commands import places
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


FOURTH = """
from areal_launcher.place_commands import PlaceCommands

class Fourth(PlaceCommands):
    name, title, options = "fourth", "Fourth", frozenset({"queue", "detach"})

    def add_options(self, parser, command):
        if command == "run":
            parser.add_argument("--queue")

    def run(self, args):
        print(f"runs {args.items} in {args.queue}")
        return 3

PLACE = Fourth()
"""


@pytest.fixture
def fourth_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "fourth").mkdir()
    (tmp_path / "fourth" / "__init__.py").touch()
    (tmp_path / "fourth" / "cli.py").write_text(FOURTH)
    monkeypatch.setattr(folders, "__path__", [*folders.__path__, str(tmp_path)])
    places.cache_clear()
    yield
    places.cache_clear()


@pytest.mark.usefixtures("fourth_place")
def test_another_place_takes_a_folder_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--on", "fourth", "x.yaml", "--queue", "q", "--detach"]) == 3
    assert "runs ['x.yaml'] in q" in capfd.readouterr().out
    assert cli.main(["run", "x.yaml", "--queue", "q"]) == 2
    assert "--queue applies only to Fourth; add --on fourth" in capfd.readouterr().err
    assert cli.main(["run", "--on", "fourth", "x.yaml", "--port", "1"]) == 2
    assert "--port does not apply to --on fourth; omit it" in capfd.readouterr().err
    assert cli.main(["check", "--on", "fourth", "x.yaml"]) == 2
    assert "grpo check does not ask Fourth" in capfd.readouterr().err
    assert cli.main(["status", "--on", "fourth", str(make_run(tmp_path, "r", summary={"outcome": "succeeded"}))]) == 0
    assert "--on {local,fourth,kubernetes,ray,slurm}" in cli.run_parser().format_help()
