"""``grpo --on slurm`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher import cli
from areal_launcher.places.slurm.cli import request


def test_options_are_short_forms_of_keys_and_reach_the_experiment(experiment_path: Path) -> None:
    options = [
        "--partition",
        "gpu",
        "--time",
        "8:00:00",
        "--container-image",
        "a/b:1",
        "--sbatch=--mem=0",
        "--sbatch=-x",
    ]
    args = cli.run_parser().parse_intermixed_args([str(experiment_path), "--on", "slurm", *options])
    slurm = request(args).load().spec.slurm
    assert (slurm.partition, slurm.time, slurm.container_image, slurm.args) == (
        "gpu",
        "8:00:00",
        "a/b:1",
        ["--mem=0", "-x"],
    )


def test_arguments_of_sbatch_come_after_those_of_the_file(experiment_path: Path) -> None:
    items = [str(experiment_path), "slurm.args=[--mem=0]", "slurm.nodes=2"]
    args = cli.run_parser().parse_intermixed_args([*items, "--on", "slurm", "--sbatch=--exclusive"])
    slurm = request(args).load().spec.slurm
    assert (slurm.args, slurm.nodes) == (["--mem=0", "--exclusive"], 2)
    args = cli.run_parser().parse_intermixed_args([*items, "--on", "slurm", "--sbatch=--comment=a\nb"])
    with pytest.raises(ValueError, match="--sbatch"):
        request(args).load()


def test_a_time_limit_of_digits_stays_text(experiment_path: Path) -> None:
    for text in ("90", "1:30", "2-00", "12:00:00"):
        args = cli.run_parser().parse_intermixed_args([str(experiment_path), "--on", "slurm", "--time", text])
        assert request(args).load().spec.slurm.time == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partition", "gpu"], "--partition applies only to Slurm; add --on slurm"),
        (["--on", "slurm", "--port", "30000"], "--port does not apply to --on slurm; omit it"),
        (["--on", "slurm", "--checkpoint"], "--checkpoint does not apply to --on slurm; omit it"),
    ],
)
def test_options_of_another_place_are_refused(
    experiment_path: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(experiment_path), *arguments]) == 2
    assert message in capfd.readouterr().err


def test_a_time_limit_in_a_file_needs_no_quotes(experiment_path: Path) -> None:
    text = experiment_path.read_text()
    assert text.count("\nspec:\n") == 1
    experiment_path.write_text(text.replace("\nspec:\n", "\nspec:\n  slurm: {time: 12:00:00}\n"))
    args = cli.run_parser().parse_intermixed_args([str(experiment_path), "--on", "slurm"])
    assert request(args).load().spec.slurm.time == "12:00:00"
