"""The command line of ``grpo``."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher import cli


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_concise_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = cli.COMMANDS[command][0]().format_help()
    assert f"grpo {command}" in text
    assert len(text.splitlines()) < 64


def test_a_directory_without_a_run_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("plot", "status", "logs"):
        assert cli.main([command, str(tmp_path)]) == 2
        assert str(tmp_path) in capfd.readouterr().err


def test_cluster_options_are_refused_for_a_local_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option in (["--detach"], ["--results", "x"], ["--context", "x"]):
        assert cli.main(["run", "experiment.yaml", *option]) == 2
        assert f"{option[0]} applies only to a cluster; add --on kubernetes" in capfd.readouterr().err


@pytest.mark.parametrize("option", [["--context", "x"], ["--checkpoint"]])
def test_options_that_mean_nothing_on_ray_are_refused(option: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "experiment.yaml", "--on", "ray", *option]) == 2
    assert f"{option[0]} does not apply to --on ray; omit it" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["local", "kubernetes"])
def test_the_address_of_a_ray_cluster_is_refused_elsewhere(place: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "experiment.yaml", "--on", place, "--address", "x:1"]) == 2
    assert "--address applies only to Ray; add --on ray" in capfd.readouterr().err
