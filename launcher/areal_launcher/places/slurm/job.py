"""The job of a run: its options, its batch script, and the file that remembers it in the run directory."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from areal_api import names
from areal_api.experiment import GRPOExperiment
from areal_launcher.bounded_files import DamagedFileError, number, read_object
from areal_launcher.places.slurm.layout import Layout
from areal_launcher.run_files import write_atomic

CONTROLLER = "areal_launcher.places.slurm.controller"
JOB_PREFIX = "grpo-"
EXIT_NOT_SHARED = 66
# Options of sbatch that grpo sets, or that would submit something else than one job for the run.
OWN_OPTIONS = (
    *("--array", "--chdir", "--clusters", "--cpus-per-task", "--error", "--export"),
    *("--gpus", "--gpus-per-node", "--gpus-per-task", "--gpus-per-socket", "--help", "--input", "--job-name"),
    *("--no-requeue", "--nodes", "--ntasks", "--ntasks-per-node", "--open-mode", "--output", "--parsable", "--requeue"),
    *("--signal", "--test-only", "--usage", "--version", "--wait", "--wrap"),
)
OWN_LETTERS = "acDehGiJMnNoVW"


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was submitted for a run."""

    id: str
    submitted_at: float = 0.0  # seconds since the epoch, on the submit host


def job_dir(run: Path) -> Path:
    """Files of the job: what was submitted, and the addresses that its nodes publish."""
    return run / "slurm"


def probe_file(run: Path) -> Path:
    """Written before the job is submitted; every node must see it."""
    return job_dir(run) / "probe"


def submitted_experiment(run: Path) -> Path:
    """The experiment that the job runs."""
    return job_dir(run) / "experiment.yaml"


def layout_file(run: Path) -> Path:
    """The layout that the job runs with."""
    return job_dir(run) / "layout.json"


def output_file(run: Path) -> Path:
    """Output of the batch script."""
    return names.logs_dir(run) / "slurm-job.log"


def write_job(run: Path, job: SubmittedJob) -> None:
    """Remember the job of a run."""
    write_atomic(job_dir(run) / "job.json", json.dumps({"id": job.id, "submitted_at": job.submitted_at}))


def read_job(run: Path) -> SubmittedJob | None:
    """The last job of a run; None if none was submitted."""
    try:
        found = read_object(job_dir(run) / "job.json")
    except DamagedFileError:
        return None
    if not found or not str(found.get("id", "")).isdecimal():
        return None
    return SubmittedJob(str(found["id"]), number(found.get("submitted_at")) or 0.0)


def write_start(run: Path, job_id: str, started_at: float) -> None:
    """Remember when the job has started for the first time."""
    write_atomic(job_dir(run) / "start.json", json.dumps({"id": job_id, "started_at": started_at}))


def read_start(run: Path, job_id: str) -> float | None:
    """When the job has started for the first time, in seconds since the epoch; None if it has not."""
    try:
        found = read_object(job_dir(run) / "start.json") or {}
    except DamagedFileError:
        return None
    return number(found.get("started_at")) if found.get("id") == job_id else None


def count_idle_starts(run: Path, job_id: str, step: int) -> int:
    """How many starts of the job in a row, with this one, have ended without a step after ``step``; remembered."""
    file = job_dir(run) / "requeues.json"
    try:
        found = read_object(file) or {}
    except DamagedFileError:
        found = {}
    same = found.get("id") == job_id and found.get("step") == step
    count = int(number(found.get("idle_starts")) or 0) + 1 if same else 0
    write_atomic(file, json.dumps({"id": job_id, "step": step, "idle_starts": count}))
    return count


def sbatch_arguments(experiment: GRPOExperiment, run: Path, components: Sequence[Layout]) -> list[str]:
    """Arguments of sbatch for one allocation, or for a heterogeneous job if there are two layouts."""
    config, slurm = experiment.spec.config, experiment.spec.slurm
    check_arguments("slurm.args", slurm.args)
    common = [
        f"--job-name={JOB_PREFIX}{config.experiment_name}-{config.trial_name}",
        f"--output={file_pattern(output_file(run))}",
        "--open-mode=append",
        f"--signal=B:TERM@{slurm.stop_seconds}",
        "--requeue" if slurm.requeue else "--no-requeue",
        "--export=ALL",
    ]
    common += [f"--{name}={value}" for name in ("account", "qos", "time") if (value := getattr(slurm, name))]
    first = [*common, *_component(components[0], slurm.partition, slurm.constraint), *slurm.args]
    if slurm.servers is None:
        return first
    servers = slurm.servers
    check_arguments("slurm.servers.args", servers.args)
    second = _component(components[1], servers.partition or slurm.partition, servers.constraint)
    charged = [f"--{name}={value}" for name in ("account", "qos") if (value := getattr(slurm, name))]
    return [*first, ":", *charged, *second, *servers.args]


def check_arguments(key: str, arguments: Sequence[str]) -> None:
    """Raise ``ValueError`` for arguments that are no options, or that grpo sets itself."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if not re.match(r"-[A-Za-z]|--[a-z]", argument):
            raise ValueError(f"{key}: {argument!r} is not an option of sbatch; write each as --option=value")
        # sbatch accepts every unambiguous beginning of a long option.
        own = argument[1] in OWN_LETTERS if argument[1] != "-" else any(one.startswith(name) for one in OWN_OPTIONS)
        if own:
            raise ValueError(
                f"{key}: {argument} is set by grpo; omit it, and use the keys of slurm, servers, trainer and cluster"
            )


def file_pattern(path: Path) -> str:
    """A path as sbatch reads it: a percent sign starts a replacement."""
    return str(path).replace("%", "%%")


def _component(layout: Layout, partition: str | None, constraint: str | None) -> list[str]:
    arguments = [f"--nodes={layout.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={layout.cpus_per_node}"]
    if layout.gpus_per_node:
        arguments.append(f"--gres=gpu:{layout.gpus_per_node}")
    if partition is not None:
        arguments.append(f"--partition={partition}")
    if constraint is not None:
        arguments.append(f"--constraint={constraint}")
    return arguments


def batch_script(run: Path, nonce: str) -> str:
    """The script of the job; ``nonce`` is the content of the probe file.

    It becomes the controller, so that a signal to the batch step reaches that.
    """
    probe = shlex.quote(str(probe_file(run)))
    controller = shlex.join([sys.executable, "-m", CONTROLLER, str(run), nonce])
    return f"""#!/bin/sh
if [ "$(cat {probe})" != {nonce} ]; then
  echo "$SLURMD_NODENAME does not see the run directory of the submit host: cluster.fileroot must be shared" >&2
  exit {EXIT_NOT_SHARED}
fi
exec {controller}
"""
