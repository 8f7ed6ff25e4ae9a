"""The options of a job, its script and its record."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from areal_launcher.places.slurm.job import (
    EXIT_NOT_SHARED,
    SubmittedJob,
    batch_script,
    job_dir,
    probe_file,
    read_job,
    read_start,
    sbatch_arguments,
    write_job,
    write_start,
)
from areal_launcher.places.slurm.layout import Layout
from support.local_runs import load


def test_every_option_of_the_experiment_reaches_sbatch(experiment_path: Path, tmp_path: Path) -> None:
    options = ("partition=gpu", "account=me", "qos=high", "time=8:00:00", "constraint=h100", "requeue=false")
    slurm = [f"slurm.{option}" for option in options] + ["slurm.args=[--mem=0, --exclusive]", "slurm.stopSeconds=300"]
    arguments = sbatch_arguments(load(experiment_path, *slurm), tmp_path, [Layout(2, 8, 32)])
    assert {
        *("--partition=gpu", "--account=me", "--qos=high", "--time=8:00:00", "--constraint=h100", "--no-requeue"),
        *("--nodes=2", "--gres=gpu:8", "--cpus-per-task=32", "--signal=B:TERM@300", "--mem=0", "--exclusive"),
    } <= set(arguments)


@pytest.mark.parametrize(
    "argument",
    [
        *("--array=1-3", "--arr=1-3", "-a1-3", "--wrap=id", "--test-only", "--version", "--outp=x", "-ox", "-N4", "-W"),
        *("script.sh", ":", "--", "-", "--export=NONE", "--clusters=all", "-Mall", "--gpus=4", "-G4", "--ntasks=3"),
    ],
)
@pytest.mark.parametrize("key", ["slurm.args", "slurm.servers.args"])
def test_arguments_that_would_submit_something_else_are_refused(
    experiment_path: Path, tmp_path: Path, key: str, argument: str
) -> None:
    values = f"{key}=[{json.dumps(argument)}]"
    with pytest.raises(ValueError, match=f"{key}: .*{re.escape(argument)}"):
        sbatch_arguments(load(experiment_path, values), tmp_path, [Layout(1, 8, 8), Layout(1, 4, 4)])


@pytest.mark.parametrize(
    "argument", ["--mem=0", "--exclusive", "-xn3", "--gres=gpu:h100:8", "--nodelist=n[1-3]", "-Lfoo", "--no-kill"]
)
def test_other_arguments_are_passed(experiment_path: Path, tmp_path: Path, argument: str) -> None:
    experiment = load(experiment_path, f"slurm.args=[{json.dumps(argument)}]")
    assert argument in sbatch_arguments(experiment, tmp_path, [Layout(1, 8, 8)])


def test_a_percent_sign_in_the_path_is_not_replaced(experiment_path: Path) -> None:
    arguments = sbatch_arguments(load(experiment_path), Path("/shared/100%j"), [Layout(1, 0, 1)])
    assert "--output=/shared/100%%j/logs/slurm-job.log" in arguments


def test_the_first_start_of_a_job_is_remembered(tmp_path: Path) -> None:
    job_dir(tmp_path).mkdir()
    write_start(tmp_path, "42", 1000.5)
    assert read_start(tmp_path, "42") == 1000.5
    assert read_start(tmp_path, "43") is None
    (job_dir(tmp_path) / "start.json").write_text("[")
    assert read_start(tmp_path, "42") is None


def test_a_component_for_the_servers_follows_a_colon(experiment_path: Path, tmp_path: Path) -> None:
    slurm = ("slurm.partition=big", "slurm.servers={partition: small, nodes: 2, args: [--mem=1G]}")
    arguments = sbatch_arguments(load(experiment_path, *slurm), tmp_path, [Layout(1, 8, 8), Layout(2, 4, 4)])
    second = arguments[arguments.index(":") + 1 :]
    assert {"--partition=small", "--nodes=2", "--gres=gpu:4", "--mem=1G"} <= set(second)
    assert "--partition=big" in arguments[: arguments.index(":")]


def test_the_script_refuses_a_node_without_the_run_directory(tmp_path: Path) -> None:
    run = tmp_path / "a 'b\" $c"
    done = subprocess.run(["sh", "-s"], input=batch_script(run, "n1"), capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_NOT_SHARED
    assert "cluster.fileroot must be shared" in done.stderr
    job_dir(run).mkdir(parents=True)
    probe_file(run).write_text("other")
    assert subprocess.run(["sh", "-s"], input=batch_script(run, "n1"), text=True, check=False).returncode == 66


def test_the_job_of_a_run_is_remembered(tmp_path: Path) -> None:
    assert read_job(tmp_path) is None
    job_dir(tmp_path).mkdir()
    write_job(tmp_path, SubmittedJob("42", 7.5))
    assert read_job(tmp_path) == SubmittedJob("42", 7.5)
    (job_dir(tmp_path) / "job.json").write_text('{"id": "1; rm -rf /"}')
    assert read_job(tmp_path) is None
