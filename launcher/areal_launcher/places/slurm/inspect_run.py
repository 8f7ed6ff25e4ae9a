"""`grpo status`, `grpo stop` and `grpo check` for runs on Slurm."""

from __future__ import annotations

import getpass
from pathlib import Path

from areal_api import names
from areal_api.load import with_home_expanded
from areal_launcher.check import FITS, PROBLEMS, print_report
from areal_launcher.console import console_for
from areal_launcher.core import status as run_directory
from areal_launcher.core.plan import plan_run
from areal_launcher.fit import fit_in_jobs, gpu_in_jobs
from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.job import JOB_PREFIX, output_file, read_job, read_start, sbatch_arguments
from areal_launcher.places.slurm.submit import check_container, estimate, plan_job
from areal_launcher.request import Request
from areal_launcher.run_state import State, state_of
from areal_launcher.run_status import status_of_directory

COLUMNS = "%i|%T|%M|%l|%D|%j|%r"


def status(directory: Path | None, *, as_json: bool = False) -> int:
    """Print the state of a run and of its job; without a directory the user's jobs of grpo.

    ``as_json``: print the state of the run as JSON.
    """
    console = console_for()
    if directory is None:
        for line in squeue(f"--user={getpass.getuser()}"):
            if line[5].startswith(JOB_PREFIX):
                console.print(describe(line), markup=False, soft_wrap=True)
        return 0
    submitted = read_job(directory)
    if submitted is None:
        raise ValueError(f"{directory}: no job of Slurm was submitted for this directory")
    job = commands.find_job(submitted.id)
    state = state_with_job(directory, job)
    if as_json:
        print(status_of_directory(directory, state=state).as_json())
        return 0
    lines = squeue(f"--jobs={submitted.id}")
    for line in lines:
        console.print(describe(line), markup=False, soft_wrap=True)
    if not lines:
        console.print(f"job {submitted.id}  {job.state if job else 'ended'}", markup=False)
    if not names.config_file(directory).exists():
        return 0  # the job has not started yet
    if state.name == "pending":
        console.print(f"{state.reason}; until then, this is left of the run:", markup=False)
    return run_directory.status(directory)


def state_with_job(directory: Path, job: commands.Job | None) -> State:
    """The state of a run and its job: None if the cluster has forgotten the job."""
    if job is not None and job.state in commands.QUEUED:
        return State("pending", f"the job waits in the queue ({job.reason})")
    if names.config_file(directory).exists():
        state = state_of(directory)
        if state.name == "running" or job is None or not job.active or has_ended_in(directory, job):
            return state
    if is_active(job):
        return State("pending", "the job starts")
    ended = "has ended" if job is None else f"ended as {job.state}"
    return State("failed", f"the job {ended} before it could report anything; see {output_file(directory)}")


def has_ended_in(directory: Path, job: commands.Job) -> bool:
    """Whether the run has ended in this job, which Slurm still ends: its summary is newer than the job's start."""
    started_at, summary = read_start(directory, job.id), names.summary_file(directory)
    return started_at is not None and summary.exists() and summary.stat().st_mtime >= started_at


def is_active(job: commands.Job | None) -> bool:
    """Whether the job is queued, runs or ends."""
    return job is not None and job.active


def stop(directory: Path, *, now: bool) -> int:
    """End the job of a run: after a recovery checkpoint, or at once with ``now``."""
    console = console_for()
    submitted = read_job(directory)
    job = commands.find_job(submitted.id) if submitted is not None else None
    if submitted is None or job is None or not job.active:
        raise ValueError(f"{directory}: no job of this run is queued or runs")
    if now or job.state in commands.QUEUED:
        commands.run("scancel", submitted.id)
        console.print(f"job {submitted.id} is cancelled", markup=False)
        return 0
    # To the controller alone, which asks the trainer for a checkpoint. SIGTERM would queue the job again.
    commands.run("scancel", "--batch", "--signal=INT", submitted.id)
    console.print(f"job {submitted.id} writes a recovery checkpoint and ends; --now ends it at once", markup=False)
    return 0


def check(request: Request, *, gpu: str | None) -> int:
    """Print how the cluster would hold the run, when, and whether it fits: 0 if so, else 1.

    ``gpu``: name of the GPUs to compare with. Raises ``ValueError`` if the cluster cannot hold it.
    """
    experiment = with_home_expanded(request.load())
    directory = names.run_dir(experiment.spec.config).absolute()
    plan_run(experiment, run=directory, key_file=directory / "api-key", threads=1)  # refuses what no job can run
    check_container(experiment.spec, directory)
    components = plan_job(experiment)
    console = console_for()
    for layout in components:
        parts = [f"server-{i} on node {node}" for i, node in enumerate(layout.servers)]
        parts += [f"trainer node {i} on node {node}" for i, node in enumerate(layout.trainer)]
        console.print(
            f"{counted(layout.nodes)} of {layout.gpus_per_node} GPUs and {layout.cpus_per_node} CPUs: "
            + ", ".join(parts),
            markup=False,
            soft_wrap=True,
        )
    console.print(
        f"sbatch --test-only: {estimate(sbatch_arguments(experiment, directory, components), experiment.spec.slurm)}",
        markup=False,
        soft_wrap=True,
    )
    found = gpu_in_jobs(experiment.spec, gpu)
    report = fit_in_jobs(experiment.spec, gpu=found)
    print_report(report, found)
    return FITS if report.fits else PROBLEMS


def squeue(*selection: str) -> list[list[str]]:
    """Jobs in the queue, by ``COLUMNS``. Empty for a job that the queue no longer has."""
    try:
        output = commands.run("squeue", "--all", "--noheader", "--states=all", f"--format={COLUMNS}", *selection)
    except commands.SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise ValueError(f"squeue failed: {error}") from error
    return [line.split("|", 6) for line in output.splitlines() if line.count("|") >= 6]


def describe(line: list[str]) -> str:
    """One job in words."""
    job, state, elapsed, limit, nodes, name, reason = line
    why = f" ({reason})" if reason not in ("None", "") else ""
    return f"job {job}  {name}  {state}{why}  {elapsed} of {limit}  {counted(nodes)}"


def counted(nodes: int | str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{nodes} node" if str(nodes) == "1" else f"{nodes} nodes"
