"""`grpo run --on slurm`: submits a run, or finds its job, and follows it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from areal_api import names
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_api.load import with_home_expanded
from areal_api.render import experiment_yaml
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError, read_tail
from areal_launcher.console import console_for
from areal_launcher.core.journal import JournalReader, journal_size
from areal_launcher.display import Display, display_for, show_added_steps
from areal_launcher.errors import RunError
from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.job import (
    SubmittedJob,
    job_dir,
    output_file,
    read_job,
    read_start,
    submitted_experiment,
)
from areal_launcher.places.slurm.submit import submit
from areal_launcher.request import Request
from areal_launcher.results_table import results_table

POLL_S = 0.5
ASK_S = 3.0  # between two questions to slurmctld
INTERRUPTED = 130
MAX_OUTPUT_BYTES = 2**14


def run(request: Request, *, detach: bool, check_fit: Callable[[ExperimentSpec], None] = lambda spec: None) -> int:
    """Submit the experiment unless its job is queued or runs, and follow it; the exit status of the run."""
    experiment = with_home_expanded(request.load())
    console = console_for()
    directory = names.run_dir(experiment.spec.config).absolute()
    with submitting(directory):
        job = active_job(directory)
        offset = 0
        if job is None:
            check_fit(experiment.spec)
            offset = journal_size(directory)
            job = submit(experiment, directory)
            console.print(f"submitted job {job.id}, run directory {directory}", markup=False, soft_wrap=True)
        else:
            require_same(experiment, directory, job)
            console.print(f"following job {job.id}, run directory {directory}", markup=False, soft_wrap=True)
    if detach:
        console.print("the same command without --detach follows it", markup=False)
        return 0
    wait_s = experiment.spec.run_policy.pre_running_deadline_seconds
    try:
        with display_for(console) as display:
            status = Follower(directory, job, offset, pre_running_s=wait_s).follow(display)
    except KeyboardInterrupt:
        console.print(
            f"job {job.id} continues; the same command follows it again, and grpo stop {directory} --on slurm ends it",
            markup=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    console.print(results_table(directory))
    return status


@contextmanager
def submitting(directory: Path) -> Iterator[None]:
    """Let one grpo at a time submit a job for the run directory."""
    try:
        job_dir(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cluster.fileroot: cannot create {directory}: {error.strerror}") from error
    descriptor = os.open(job_dir(directory) / "submit.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def active_job(directory: Path) -> SubmittedJob | None:
    """The job of the run if it is queued or runs."""
    submitted = read_job(directory)
    if submitted is None:
        return None
    job = commands.find_job(submitted.id)
    return submitted if job is not None and job.active else None


def require_same(experiment: GRPOExperiment, directory: Path, job: SubmittedJob) -> None:
    """Raise ``ValueError`` if the job runs another configuration than ``experiment``."""
    if submitted_experiment(directory).read_text(encoding="utf-8") != experiment_yaml(experiment):
        raise ValueError(
            f"job {job.id} runs {directory} with another configuration, which is in {submitted_experiment(directory)}; "
            f"repeat its command to follow it, end it with grpo stop {directory} --on slurm, or choose another "
            "trial_name"
        )


class Follower:
    """Follows a job through its run directory and slurmctld. Needs no connection to the job."""

    def __init__(self, directory: Path, job: SubmittedJob, offset: int, *, pre_running_s: float | None = None) -> None:
        """``offset``: where the job's part of the journal begins. ``pre_running_s``: how long it may be queued."""
        self._directory = directory
        self._job = job
        self._journal = JournalReader(directory, offset=offset)
        self._stats = run_files.Stats(names.stats_file(directory))
        self._asked = -ASK_S
        self._state: commands.Job | None = None
        self._pre_running_s = pre_running_s

    def follow(self, display: Display) -> int:
        """Follow to the end of the job; the exit status of the run. Raises ``RunError`` if it failed."""
        while True:
            job = self._ask(display)
            self._journal.replay(display)
            show_added_steps(display, self._stats)
            if job is None or not job.active:
                self._journal.replay(display)
                show_added_steps(display, self._stats)
                return self._outcome(job)
            time.sleep(POLL_S)

    def _check_queue(self, job: commands.Job) -> None:
        """Cancel a job that has waited too long for its first start."""
        limit_s, submitted_at = self._pre_running_s, self._job.submitted_at
        if limit_s is None or time.time() - submitted_at <= limit_s or read_start(self._directory, job.id) is not None:
            return
        commands.run("scancel", job.id)
        raise RunError(
            f"job {job.id} is cancelled: it waited in the queue ({job.reason}) for longer than "
            f"runPolicy.preRunningDeadlineSeconds = {limit_s:g}"
        )

    def _ask(self, display: Display) -> commands.Job | None:
        """The state of the job, asked for every ``ASK_S``, or at once after the run has reported its end."""
        if self._state is None or time.monotonic() - self._asked >= ASK_S:
            self._asked = time.monotonic()
            try:
                self._state = commands.find_job(self._job.id)
            except commands.SlurmError as error:  # slurmctld restarts, for example: the job continues
                display.message(f"cannot ask for job {self._job.id}: {error}")
                return self._state or commands.Job(self._job.id, "RUNNING", "", "", "")
            if self._state is not None and self._state.state in commands.QUEUED:
                self._check_queue(self._state)
                display.phase(f"job {self._job.id} waits in the queue ({self._state.reason})")
        return self._state

    def _outcome(self, job: commands.Job | None) -> int:
        ended = self._journal.ended
        if isinstance(ended, RunError):
            raise ended
        state = "" if job is None else job.state
        if ended is not None and state not in ("TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"):
            return ended
        raise RunError(
            f"job {self._job.id} ended as {state or 'unknown'}{self._explain(state, job)}",
            log=output_file(self._directory) if output_file(self._directory).exists() else None,
            lines=self._output(),
        )

    def _explain(self, state: str, job: commands.Job | None) -> str:
        again = "; run the same command to continue from the last checkpoint"
        if state == "FAILED" and self._journal.ended is None:
            nodes = job.batch_host if job is not None else "its node"
            if read_start(self._directory, self._job.id) is not None:
                return f": the launcher of the run was killed on {nodes}{again}"
            if self._output():
                return ""
            return (
                f" before it could report anything: {nodes} may not see {self._directory}; set cluster.fileroot to a "
                "directory that all nodes share"
            )
        return {"TIMEOUT": ", its time limit" + again, "FAILED": ""}.get(state, again)

    def _output(self) -> list[str]:
        try:
            return read_tail(output_file(self._directory), MAX_OUTPUT_BYTES).decode(errors="replace").splitlines()[-20:]
        except (OSError, DamagedFileError):
            return []
