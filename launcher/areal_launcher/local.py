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
from areal_launcher import record
from areal_launcher.display import Display
from areal_launcher.fleet import Fleet, RunError, ServerSpec
from areal_launcher.processes import Supervised, children, kill_orphans, kill_together
from areal_launcher.supervisor import PR_SET_CHILD_SUBREAPER, prctl

POLL_S = 0.1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 120.0  # for the trainer's recovery checkpoint after the first signal
TORCHRUN_FAILURE = ("torch/distributed/elastic", "failed (exitcode")


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


def without_torchrun(lines: Sequence[str]) -> list[str]:
    """The lines before torchrun's own report that a rank failed: the rank's last words stand there."""
    for place, line in enumerate(lines):
        if all(part in line for part in TORCHRUN_FAILURE):
            return list(lines[:place])
    return list(lines)


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
        self._stats = record.Stats(names.stats_file(plan.run))
        self._interrupts = Interrupts()
        self._stop_at: float | None = None
        self._written = ""
        self._others: set[int] = set()

    def run(self) -> int:
        """Run to the end: 0, or 128 + n after signal n. ``RunError`` when the trainer failed or no server can serve."""
        self._others = children()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        with self._interrupts.caught():
            fleet = Fleet(self._plan.servers, setup_timeout_s=self._plan.setup_timeout_s, say=self._display.message)
            started = list(fleet.processes)
            try:
                spec = self._plan.trainer
                trainer = Supervised("trainer", spec.argv, env=spec.env, log=spec.log)
                started.append(trainer)
                return self._watch(fleet, trainer)
            finally:
                kill_together([*fleet.processes, *started])
                kill_orphans(self._others)

    def _watch(self, fleet: Fleet, trainer: Supervised) -> int:
        while True:
            status = trainer.poll()
            self._stats.poll()
            self._display.update(self._stats, self._total_steps())
            if status is not None:
                return self._ended(status, trainer)
            if self._interrupted(trainer):
                return 128 + self._interrupts.received[-1]
            if self._stop_at is None:
                fleet.tick()
                self._display.phase(self._phase(fleet))
            self._write_state(fleet)
            if any(process.lost for process in fleet.processes):
                kill_orphans(self._others | {process.pid for process in [*fleet.processes, trainer]})
            time.sleep(POLL_S)

    def _interrupted(self, trainer: Supervised) -> bool:
        """Whether to end at once; the first signal only asks the trainer to."""
        received = self._interrupts.received
        if not received:
            return False
        if self._stop_at is None:
            self._stop_at = time.monotonic() + GRACE_S
            trainer.terminate()
            self._display.phase("stopping: the trainer writes a recovery checkpoint (again: at once)")
        return len(received) > 1 or time.monotonic() > self._stop_at

    def _ended(self, status: int, trainer: Supervised) -> int:
        if status == 0:
            return 0
        if self._interrupts.received:
            return 128 + self._interrupts.received[-1]
        raise TrainerFailed(status, trainer)

    def _total_steps(self) -> int | None:
        said = self._stats.last(record.TOTAL_STEPS)
        return int(said) if said is not None else self._plan.total_steps

    def _phase(self, fleet: Fleet) -> str:
        if fleet.ready < len(fleet.servers) and not self._stats.by_step:
            return f"starting servers, {fleet.ready} of {len(fleet.servers)} ready"
        if not self._stats.by_step:
            return "first step"
        return "training"

    def _write_state(self, fleet: Fleet) -> None:
        """Tell ``grpo status`` about the servers."""
        servers = [
            {"name": s.spec.name, "address": s.spec.address, "state": s.state, "restarts": s.restarts}
            for s in fleet.servers
        ]
        text = json.dumps({"servers": servers})
        if text != self._written:
            record.write_whole(record.state_file(self._plan.run), text)
            self._written = text


class TrainerFailed(RunError):
    """The trainer ended with an exit status other than 0."""

    def __init__(self, status: int, trainer: Supervised) -> None:
        lines = without_torchrun(trainer.tail(400))[-20:]
        super().__init__(f"the trainer failed with exit status {status}", log=trainer.log, lines=lines)
        self.status = status
