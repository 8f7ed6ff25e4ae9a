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
