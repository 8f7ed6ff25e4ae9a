"""A run on this machine: starts, watches and stops servers and trainer together."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from areal_api import names, stat_names
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.display import Display
from areal_launcher.errors import RunError
from areal_launcher.local.processes import SupervisedProcess, children, kill_orphans, kill_processes
from areal_launcher.local.servers import ServerFleet, ServerProcess
from areal_launcher.local.supervisor import PR_SET_CHILD_SUBREAPER, prctl
from areal_launcher.torchrun import failed_rank_status, strip_report

POLL_S = 0.1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 120.0  # for the trainer's recovery checkpoint after the first signal
USAGE_ERROR = 2  # the trainer's exit status for an invalid configuration, which no restart can fix


@dataclass(frozen=True)
class TrainerProcess:
    """Command of the trainer."""

    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path


@dataclass(frozen=True)
class LocalPlan:
    """All processes of a run, decided before any is started."""

    run: Path
    servers: Sequence[ServerProcess]
    trainer: TrainerProcess
    setup_timeout_s: float
    total_steps: int | None
    startup_phase: str = "starting the trainer, first step"
    phase: str = "training"
    backoff_limit: int = 0  # restarts of a trainer that has finished a step
    active_deadline_s: float | None = None


class Interrupts:
    """Termination signals received by this process, in order."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received.append(signum)

    @contextlib.contextmanager
    def caught(self) -> Iterator[Interrupts]:
        """Record SIGINT, SIGTERM and SIGHUP instead of terminating.

        A signal that the caller ignores stays ignored: SIGHUP under nohup, SIGINT of a background job.
        """
        caught = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, self._note) for number in caught}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class LocalRun:
    """Executes a plan."""

    def __init__(self, plan: LocalPlan, display: Display) -> None:
        self._plan = plan
        self._display = display
        self._stats = run_files.Stats(names.stats_file(plan.run))
        self._trained = False  # whether the trainer has finished a step since its last start
        self._interrupts = Interrupts()
        self._started = time.monotonic()
        self._kill_at: float | None = None
        self._written_state = ""
        self._unrelated: set[int] = set()
        self._stats_problem = False
        self._poll_stats()

    def run(self) -> int:
        """Run to the end: 0, or 128 + n after signal n. Raises ``RunError`` if the trainer or all servers failed."""
        self._unrelated = children()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        with self._interrupts.caught():
            fleet = ServerFleet(
                self._plan.servers, setup_timeout_s=self._plan.setup_timeout_s, notify=self._display.message
            )
            trainers: list[SupervisedProcess] = []
            try:
                return self._train(fleet, trainers)
            finally:
                kill_processes([*fleet.processes, *trainers])
                kill_orphans(self._unrelated)

    def _train(self, fleet: ServerFleet, trainers: list[SupervisedProcess]) -> int:
        """Run the trainer and restart it if it failed after a step. Every start is appended to ``trainers``."""
        spec, limit = self._plan.trainer, self._plan.backoff_limit
        while True:
            trainer = SupervisedProcess("trainer", spec.argv, env=spec.env, log=spec.log)
            trainers.append(trainer)
            self._trained = False
            status = self._watch(fleet, trainer)
            if trainer.supervisor_killed:  # its ranks still run and would train alongside those of the next start
                self._kill_orphans(fleet)
            if status == 0:
                return 0
            if self._interrupts.received:
                return 128 + self._interrupts.received[-1]
            if self._kill_at is not None:
                raise RunError(f"stopped after runPolicy.activeDeadlineSeconds = {self._plan.active_deadline_s}")
            failure = TrainerFailed(status, trainer)
            if not self._trained or len(trainers) > limit or failure.status == USAGE_ERROR:
                raise failure
            checkpoint = any(names.recover_dir(self._plan.run).glob("step*"))
            resumes = "continues from its last checkpoint" if checkpoint else "starts over without a checkpoint"
            self._display.message(
                f"the trainer failed (exit status {failure.status}) and {resumes}, "
                f"restart {len(trainers)} of {limit}; see {spec.log}"
            )

    def _watch(self, fleet: ServerFleet, trainer: SupervisedProcess) -> int:
        """Watch all processes until the trainer exits or must be killed; the trainer's exit status."""
        while True:
            status = trainer.poll()
            self._trained = bool(self._poll_stats()) or self._trained
            if self._kill_at is None:
                self._display.phase(self._phase(fleet))
            if self._trained:
                self._display.update(self._stats, self._total_steps())
            if status is not None:
                return status
            if self._stopping(trainer):
                return 128 + signal.SIGKILL
            if self._kill_at is None:
                fleet.tick()
            self._write_state(fleet)
            if any(process.supervisor_killed for process in fleet.processes):
                self._kill_orphans(fleet, trainer)
            time.sleep(POLL_S)

    def _poll_stats(self) -> list[run_files.Line]:
        """New statistics. A file that cannot be read is reported once and does not end the run."""
        try:
            return self._stats.poll()
        except (OSError, DamagedFileError) as error:
            if not self._stats_problem:
                self._stats_problem = True
                self._display.message(f"grpo cannot show the progress: {error}")
            return []

    def _kill_orphans(self, fleet: ServerFleet, *trainers: SupervisedProcess) -> None:
        """Kill the processes left behind by a supervisor that was itself killed."""
        kill_orphans(self._unrelated | {process.pid for process in [*fleet.processes, *trainers]})

    def _stopping(self, trainer: SupervisedProcess) -> bool:
        """Whether to kill everything now. The first signal or the deadline only terminates the trainer gracefully."""
        received, limit = self._interrupts.received, self._plan.active_deadline_s
        expired = limit is not None and time.monotonic() - self._started > limit
        if self._kill_at is None and (received or expired):
            self._kill_at = time.monotonic() + GRACE_S
            trainer.terminate()
            self._display.phase("stopping: the trainer finishes its step and writes a recovery checkpoint")
            if received:
                self._display.message("send the signal again to kill everything immediately")
        return len(received) > 1 or (self._kill_at is not None and time.monotonic() > self._kill_at)

    def _total_steps(self) -> int | None:
        reported = self._stats.last(stat_names.TOTAL_STEPS)
        return int(reported) if reported is not None else self._plan.total_steps

    def _phase(self, fleet: ServerFleet) -> str:
        if fleet.ready < len(fleet.servers) and not self._stats.by_step:
            return f"starting servers, {fleet.ready} of {len(fleet.servers)} ready"
        return self._plan.phase if self._trained else self._plan.startup_phase

    def _write_state(self, fleet: ServerFleet) -> None:
        """Write the servers' state for ``grpo status``. A failed write does not end the run."""
        servers = [
            {"name": s.spec.name, "address": s.spec.address, "state": s.state, "restarts": s.restarts}
            for s in fleet.servers
        ]
        text = json.dumps({"servers": servers})
        if text != self._written_state:
            self._written_state = text
            try:
                run_files.write_atomic(run_files.state_file(self._plan.run), text)
            except OSError as error:
                self._display.message(f"grpo status cannot show the servers: {error}")


class TrainerFailed(RunError):
    """The trainer exited with a non-zero status."""

    def __init__(self, status: int, trainer: SupervisedProcess) -> None:
        lines = trainer.tail(400)
        status = failed_rank_status(lines) or status
        super().__init__(
            f"the trainer failed with exit status {status}",
            log=trainer.log,
            lines=strip_report(lines)[-20:],
            status=status,
        )
