"""A run: starts, watches, replaces and stops servers and trainer, in any place."""

from __future__ import annotations

import json
import signal
import time

from areal_api import names, stat_names
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.core.interrupts import Interrupts
from areal_launcher.core.place import Place
from areal_launcher.core.plan import GRACE_S, RunPlan
from areal_launcher.core.servers import ServerFleet
from areal_launcher.core.trainer import Trainer
from areal_launcher.display import Display
from areal_launcher.errors import RunError

POLL_S = 0.1
USAGE_ERROR = 2  # the trainer's exit status for an invalid configuration, which no restart can fix


class Run:
    """Executes a plan in a place."""

    def __init__(self, plan: RunPlan, place: Place, display: Display) -> None:
        self._plan = plan
        self._place = place
        self._display = display
        self._stats = run_files.Stats(names.stats_file(plan.run))
        self._trained = False  # whether the trainer has finished a step since its last start
        self._interrupts = Interrupts()
        self._started = time.monotonic() - plan.elapsed_s
        self._starting_since: float | None = None  # None: servers and trainer run
        self._kill_at: float | None = None
        self._place_ends = False
        self._written_state = ""
        self._written_addresses: list[str] = []
        self._stats_problem = False
        self.stop_requested = False  # by grpo stop, through the run directory
        run_files.take_stop_request(plan.run)  # of an earlier start
        self._poll_stats()

    def run(self) -> int:
        """Run to the end: 0, or 128 + n after signal n. Raises ``RunError`` if the trainer or all servers failed.

        Closes the place.
        """
        with self._interrupts.caught():
            try:
                fleet = ServerFleet(
                    self._place,
                    self._plan.servers,
                    limits=self._plan.limits,
                    notify=self._display.message,
                    replicas=self._plan.replicas,
                    drain_s=self._plan.drain_s,
                )
                return self._train(fleet)
            finally:
                self._place.close()

    def _train(self, fleet: ServerFleet) -> int:
        """Run the trainer and restart it if it failed after a step, or lost a node."""
        limit, failures, restarted = self._plan.backoff_limit, 0, False
        while True:
            self._trained = False
            trainer, status = self._watch(fleet, restarted=restarted)
            restarted = True
            if status == 0:
                return 0
            self._note_end_of_place()
            if self._interrupts.received:
                return 128 + self._interrupts.received[-1]
            if self._place_ends:
                return 128 + signal.SIGTERM
            if self._kill_at is not None or trainer is None:
                raise RunError(f"stopped after runPolicy.activeDeadlineSeconds = {self._plan.active_deadline_s}")
            failure = trainer.failure(status)
            if failure.status == names.EXIT_STOPPED and self._plan.stopped_by_others:
                return names.EXIT_STOPPED
            failures += 0 if trainer.lost else 1
            if not (self._trained or trainer.lost) or failures > limit or failure.status == USAGE_ERROR:
                raise failure
            checkpoint = any(names.recover_dir(self._plan.run).glob("step*"))
            resumes = "continues from its last checkpoint" if checkpoint else "starts over without a checkpoint"
            counted = "which does not count as a restart" if trainer.lost else f"restart {failures} of {limit}"
            self._display.message(
                f"the trainer failed (exit status {failure.status}) and {resumes}, {counted}; see {failure.log}"
            )

    def _watch(self, fleet: ServerFleet, *, restarted: bool) -> tuple[Trainer | None, int]:
        """Start the trainer once the servers' addresses are known, and watch all processes until it has exited.

        A later trainer also starts while servers wait for a node: it learns their addresses from the file. Returns the
        trainer and its exit status; no trainer if the run was stopped before its start.
        """
        trainer: Trainer | None = None
        self._starting_since = time.monotonic() - (0.0 if restarted else self._plan.waited_s)
        while True:
            self._write_addresses(fleet)
            known = [address for address in fleet.addresses if address]
            if trainer is None and self._kill_at is None and (fleet.placed or (restarted and known)):
                trainer = Trainer(self._place, self._plan.trainer, servers=known)
            status = None if trainer is None else trainer.poll()
            self._trained = bool(self._poll_stats()) or self._trained
            if self._kill_at is None:
                self._display.phase(self._phase(fleet))
            if self._trained:
                self._display.update(self._stats, self._total_steps())
            if status is not None:
                return trainer, status
            if self._stopping(trainer):
                if trainer is not None:
                    trainer.kill()
                return trainer, 128 + signal.SIGKILL
            if self._kill_at is None:
                if (replicas := run_files.take_scale_request(self._plan.run)) is not None:
                    fleet.scale(replicas)
                fleet.tick()
                self._check_start(fleet, started=trainer is not None and trainer.started)
            self._write_state(fleet)
            time.sleep(POLL_S)

    def _check_start(self, fleet: ServerFleet, *, started: bool) -> None:
        """Raise ``RunError`` if servers and trainer do not run in time."""
        limit = self._plan.pre_running_deadline_s
        if limit is None or self._starting_since is None:
            return
        if started and (fleet.ready or not fleet.servers):
            self._starting_since = None
        elif time.monotonic() - self._starting_since > limit:
            raise RunError(
                f"servers and trainer did not run within runPolicy.preRunningDeadlineSeconds = {limit:g}: "
                f"{fleet.ready} of {len(fleet.servers)} servers are ready, the trainer has "
                f"{'started' if started else 'not started'}"
            )

    def _poll_stats(self) -> list[run_files.Line]:
        """New statistics. A file that cannot be read is reported once and does not end the run."""
        try:
            return self._stats.poll()
        except (OSError, DamagedFileError) as error:
            if not self._stats_problem:
                self._stats_problem = True
                self._display.message(f"grpo cannot show the progress: {error}")
            return []

    def _stopping(self, trainer: Trainer | None) -> bool:
        """Whether to kill everything now. The first signal or the deadline only terminates the trainer gracefully."""
        if (now := run_files.take_stop_request(self._plan.run)) is not None:
            self.stop_requested = True
            self._interrupts.received.extend([signal.SIGTERM] * (2 if now else 1))
        self._note_end_of_place()
        received, limit = self._interrupts.received, self._plan.active_deadline_s
        expired = limit is not None and time.monotonic() - self._started > limit
        if self._kill_at is None and (received or expired or self._place_ends):
            self._kill_at = time.monotonic() + GRACE_S
            if trainer is None:
                return True
            trainer.terminate()
            self._display.phase("stopping: the trainer finishes its step and writes a recovery checkpoint")
            if received:
                self._display.message("send the signal again to kill everything immediately")
        return len(received) > 1 or (self._kill_at is not None and time.monotonic() > self._kill_at)

    def _note_end_of_place(self) -> None:
        """End as on SIGTERM if the place takes every process away."""
        if self._place_ends or self._interrupts.received:
            return
        if (reason := self._place.ending()) is not None:
            self._place_ends = True
            self._display.message(f"{reason}; the run ends")

    def _total_steps(self) -> int | None:
        reported = self._stats.last(stat_names.TOTAL_STEPS)
        return int(reported) if reported is not None else self._plan.total_steps

    def _phase(self, fleet: ServerFleet) -> str:
        if fleet.ready < len(fleet.servers) and not self._stats.by_step:
            return f"starting servers, {fleet.ready} of {len(fleet.servers)} ready"
        return self._plan.phase if self._trained else self._plan.startup_phase

    def _write_addresses(self, fleet: ServerFleet) -> None:
        """Tell the trainer where the servers are."""
        if (addresses := fleet.addresses) != self._written_addresses:
            run_files.write_atomic(names.server_addresses_file(self._plan.run), json.dumps(addresses))
            self._written_addresses = addresses

    def _write_state(self, fleet: ServerFleet) -> None:
        """Write the servers' state for ``grpo status``. A failed write does not end the run."""
        servers = [
            {"name": s.spec.name, "address": s.address or "unknown", "state": s.state, "restarts": s.restarts}
            for s in fleet.servers
        ]
        text = json.dumps({"servers": servers})
        if text != self._written_state:
            self._written_state = text
            try:
                run_files.write_atomic(run_files.state_file(self._plan.run), text)
            except OSError as error:
                self._display.message(f"grpo status cannot show the servers: {error}")
