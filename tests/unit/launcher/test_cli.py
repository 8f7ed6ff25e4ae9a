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
    assert cli.main(["run", "experiment.yaml", "--detach"]) == 2
    assert "--detach applies only to a cluster; add --on kubernetes, ray or slurm" in capfd.readouterr().err
    for option in (["--results", "x"], ["--context", "x"]):
        assert cli.main(["run", "experiment.yaml", *option]) == 2
        assert f"{option[0]} applies only to Kubernetes; add --on kubernetes" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("place", "option"),
    [
        ("ray", ["--context", "x"]),
        ("ray", ["--checkpoint"]),
        ("kubernetes", ["--address", "x:1"]),
        ("kubernetes", ["--port", "1"]),
        ("slurm", ["--results", "x"]),
    ],
)
def test_options_of_another_place_are_refused(place: str, option: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "experiment.yaml", "--on", place, *option]) == 2
    assert f"{option[0]} does not apply to --on {place}; omit it" in capfd.readouterr().err
