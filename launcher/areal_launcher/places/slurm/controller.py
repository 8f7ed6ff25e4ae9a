"""The launcher of a run inside its job: ``python -m areal_launcher.places.slurm.controller RUN NONCE``.

The batch script becomes this process, so Slurm's warning before the time limit reaches it. It executes the run in the
allocation and writes the journal, which ``grpo run --on slurm`` follows from anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from areal_api import logs, names
from areal_api.load import load_experiment
from areal_launcher.commands import plot_if_possible
from areal_launcher.console import console_for
from areal_launcher.core.bucket import check_bucket
from areal_launcher.core.code import prepared_code
from areal_launcher.core.journal import Journal
from areal_launcher.core.plan import plan_run
from areal_launcher.core.prepare import claimed_run
from areal_launcher.core.run import Run
from areal_launcher.errors import RunError
from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.job import (
    count_idle_starts,
    layout_file,
    probe_file,
    read_start,
    submitted_experiment,
    write_start,
)
from areal_launcher.places.slurm.layout import Layout
from areal_launcher.places.slurm.place import CONTAINER_PYTHON, SlurmPlace
from areal_launcher.run_files import read_stats

MAX_IDLE_STARTS = 5
DEADLINE = "runPolicy.preRunningDeadlineSeconds"
EXIT_TERMINATED = 128 + signal.SIGTERM
EXIT_STOPPED_BY_USER = 128 + signal.SIGINT  # not queued again


def main(directory: Path, nonce: str) -> int:
    """Execute the run; the exit status of the job."""
    job_id = os.environ["SLURM_JOB_ID"]
    journal = Journal(directory, job=job_id, restarts=os.environ.get("SLURM_RESTART_COUNT", "0"))
    try:
        status = execute(directory, nonce, journal)
        if status == EXIT_TERMINATED and load_experiment(submitted_experiment(directory)).spec.slurm.requeue:
            requeue(directory, job_id, journal)
        journal.end(status)
    except RunError as error:
        journal.fail(error)
        status = error.status
    except (ValueError, OSError) as error:
        journal.fail(RunError(str(error)))
        status = 1
    plot_if_possible(directory, console_for(stderr=True))
    return status


def execute(directory: Path, nonce: str, journal: Journal) -> int:
    """Check the nodes, then run."""
    experiment = load_experiment(submitted_experiment(directory))
    slurm = experiment.spec.slurm
    elapsed_s, waited_s = clocks(directory, os.environ["SLURM_JOB_ID"])
    limit_s = experiment.spec.run_policy.pre_running_deadline_seconds
    if limit_s is not None and waited_s > limit_s:
        raise RunError(f"the job waited {waited_s:.0f} s in the queue, longer than {DEADLINE} = {limit_s}")
    components = [Layout(**layout) for layout in json.loads(layout_file(directory).read_text(encoding="utf-8"))]
    place = SlurmPlace(directory, slurm, components, environ=os.environ)
    place.check_shared(nonce, probe_file(directory))
    journal.message(f"job {os.environ['SLURM_JOB_ID']} runs on {', '.join(node.name for node in place.nodes)}")
    inside = CONTAINER_PYTHON if slurm.container_image is not None else None
    with claimed_run(experiment, directory) as key_file:
        names.summary_file(directory).unlink(missing_ok=True)  # written by the previous start
        check_bucket(experiment.spec)
        plan = plan_run(
            experiment,
            run=directory,
            key_file=key_file,
            threads=threads_per_process(components),
            python=slurm.python or inside,
            trainer_python=None if inside else os.environ.get(names.TRAINER_PYTHON),
            code=prepared_code(experiment.spec, directory),
        )
        # At preemption, Slurm sends SIGTERM to the steps but not to the batch script.
        plan = replace(plan, stopped_by_others=True, elapsed_s=elapsed_s, waited_s=waited_s)
        run = Run(plan, place, journal)
        status = run.run()
        return EXIT_STOPPED_BY_USER if status == EXIT_TERMINATED and run.stop_requested else status


def clocks(directory: Path, job_id: str) -> tuple[float, float]:
    """Seconds since the job started for the first time, and that it waited for that in the queue."""
    first = read_start(directory, job_id)
    if first is not None:  # the job was queued again
        return max(0.0, time.time() - first), 0.0
    write_start(directory, job_id, time.time())
    with contextlib.suppress(commands.SlurmError):
        job = commands.find_job(job_id)
        return 0.0, 0.0 if job is None else job.waited_s
    return 0.0, 0.0


def threads_per_process(components: list[Layout]) -> int:
    """CPU threads of a process on cpu: a node's CPUs are shared by the processes on it."""
    layout = components[0]
    busiest = max(list(layout.servers).count(node) + list(layout.trainer).count(node) for node in range(layout.nodes))
    return max(1, layout.cpus_per_node // max(1, busiest))


def requeue(directory: Path, job_id: str, journal: Journal) -> None:
    """Queue the job again, unless a user has cancelled it: after preemption or a warning before the time limit.

    Raises ``RunError`` for a job that would be queued again for ever.
    """
    lines = read_stats(directory).lines
    step = int(lines[-1]["step"]) if lines else 0
    if count_idle_starts(directory, job_id, step) >= MAX_IDLE_STARTS:
        raise RunError(
            f"the job was started {MAX_IDLE_STARTS} times since step {step} and stopped before the next one each time; "
            "raise its time limit (--time), or choose a partition that preempts it less often"
        )
    with contextlib.suppress(commands.SlurmError):
        job = commands.find_job(job_id)
        if job is not None and job.state == "RUNNING":
            commands.run("scontrol", "requeue", job_id)
            journal.message(f"job {job_id} is queued again and continues from its last checkpoint")


if __name__ == "__main__":
    logs.set_up(text_format="%(levelname)s: %(message)s")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
