"""A run on this machine: servers and trainer are started together, watched, and ended together."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from areal_api import names
from areal_launcher import run_files
from areal_launcher.display import Display
from areal_launcher.errors import RunError
from areal_launcher.local.processes import Supervised, children, kill_orphans, kill_together
from areal_launcher.local.servers import Fleet, ServerSpec
from areal_launcher.local.supervisor import PR_SET_CHILD_SUBREAPER, prctl
from areal_launcher.torchrun import status_of_rank, without_torchrun

POLL_S = 0.1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 120.0  # for the trainer's recovery checkpoint after the first signal
WRITTEN_BY_USER = 2  # the trainer's status for a configuration that cannot work: no restart mends it


@dataclass(frozen=True)
class TrainerSpec:
    """How the trainer is started."""

    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path


@dataclass(frozen=True)
class LocalPlan:
    """Everything that runs, decided before anything is started."""

    run: Path
    servers: Sequence[ServerSpec]
    trainer: TrainerSpec
    setup_timeout_s: float
    total_steps: int | None
    first_work: str = "starting the trainer, first step"
    work: str = "training"
    backoff_limit: int = 0  # restarts of a trainer that had finished a step
    active_deadline_s: float | None = None


class Interrupts:
    """Signals that ask this process to end, in the order of their arrival."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received.append(signum)

    @contextlib.contextmanager
    def caught(self) -> Iterator[Interrupts]:
        """Collect SIGINT, SIGTERM and SIGHUP instead of dying of them."""
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class LocalRun:
    """A plan that is carried out."""

    def __init__(self, plan: LocalPlan, display: Display) -> None:
        self._plan = plan
        self._display = display
        self._stats = run_files.Stats(names.stats_file(plan.run))
        self._stats.poll()
        self._trained = False  # whether the trainer's newest start has finished a step
        self._interrupts = Interrupts()
        self._started = time.monotonic()
        self._kill_at: float | None = None
        self._written = ""
        self._others: set[int] = set()

    def run(self) -> int:
        """Run to the end: 0, or 128 + n after signal n. ``RunError`` when the trainer failed or no server can serve."""
        self._others = children()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        with self._interrupts.caught():
            fleet = Fleet(self._plan.servers, setup_timeout_s=self._plan.setup_timeout_s, say=self._display.message)
            trainers: list[Supervised] = []
            try:
                return self._train(fleet, trainers)
            finally:
                kill_together([*fleet.processes, *trainers])
                kill_orphans(self._others)

    def _train(self, fleet: Fleet, trainers: list[Supervised]) -> int:
        """Run the trainer, again where it failed after at least one step; each start is added to ``trainers``."""
        spec, limit = self._plan.trainer, self._plan.backoff_limit
        while True:
            trainer = Supervised("trainer", spec.argv, env=spec.env, log=spec.log)
            trainers.append(trainer)
            self._trained = False
            status = self._watch(fleet, trainer)
            if trainer.lost:  # its ranks live on, and would train beside those of the next start
                self._kill_orphans(fleet)
            if status == 0:
                return 0
            if self._interrupts.received:
                return 128 + self._interrupts.received[-1]
            if self._kill_at is not None:
                raise RunError(f"stopped after runPolicy.activeDeadlineSeconds = {self._plan.active_deadline_s}")
            failure = TrainerFailed(status, trainer)
            if not self._trained or len(trainers) > limit or failure.status == WRITTEN_BY_USER:
                raise failure
            checkpoint = any(names.recover_dir(self._plan.run).glob("step*"))
            after = "goes on from its last recovery checkpoint" if checkpoint else "begins again, without a checkpoint"
            self._display.message(
                f"the trainer failed (exit status {failure.status}) and {after}, "
                f"restart {len(trainers)} of {limit}; see {spec.log}"
            )

    def _watch(self, fleet: Fleet, trainer: Supervised) -> int:
        """Look after all processes until the trainer has ended or all is to end at once; the trainer's exit status."""
        while True:
            status = trainer.poll()
            self._trained = bool(self._stats.poll()) or self._trained
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
            if any(process.lost for process in fleet.processes):
                self._kill_orphans(fleet, trainer)
            time.sleep(POLL_S)

    def _kill_orphans(self, fleet: Fleet, *more: Supervised) -> None:
        """Kill what a supervisor that was itself killed has left behind."""
        kill_orphans(self._others | {process.pid for process in [*fleet.processes, *more]})

    def _stopping(self, trainer: Supervised) -> bool:
        """Whether to end at once; the first signal, or the end of the run's time, only asks the trainer to."""
        received, limit = self._interrupts.received, self._plan.active_deadline_s
        late = limit is not None and time.monotonic() - self._started > limit
        if self._kill_at is None and (received or late):
            self._kill_at = time.monotonic() + GRACE_S
            trainer.terminate()
            self._display.phase("stopping: the trainer finishes its step and writes a recovery checkpoint")
            if received:
                self._display.message("the same signal again ends everything at once")
        return len(received) > 1 or (self._kill_at is not None and time.monotonic() > self._kill_at)

    def _total_steps(self) -> int | None:
        said = self._stats.last(run_files.TOTAL_STEPS)
        return int(said) if said is not None else self._plan.total_steps

    def _phase(self, fleet: Fleet) -> str:
        if fleet.ready < len(fleet.servers) and not self._stats.by_step:
            return f"starting servers, {fleet.ready} of {len(fleet.servers)} ready"
        return self._plan.work if self._trained else self._plan.first_work

    def _write_state(self, fleet: Fleet) -> None:
        """Tell ``grpo status`` about the servers. No run ends because it cannot be told."""
        servers = [
            {"name": s.spec.name, "address": s.spec.address, "state": s.state, "restarts": s.restarts}
            for s in fleet.servers
        ]
        text = json.dumps({"servers": servers})
        if text != self._written:
            self._written = text
            try:
                run_files.write_whole(run_files.state_file(self._plan.run), text)
            except OSError as error:
                self._display.message(f"grpo status will not know how the servers are: {error}")


class TrainerFailed(RunError):
    """The trainer ended with an exit status other than 0."""

    def __init__(self, status: int, trainer: Supervised) -> None:
        lines = trainer.tail(400)
        self.status = status_of_rank(lines) or status
        shown = without_torchrun(lines)[-20:]
        super().__init__(f"the trainer failed with exit status {self.status}", log=trainer.log, lines=shown)
