"""The trainer of a run: torchrun on one or more nodes, started and ended together."""

from __future__ import annotations

import time
from collections.abc import Sequence

from areal_api import names
from areal_launcher.core.place import Place, Process, ProcessSpec, kill_all
from areal_launcher.errors import RunError
from areal_launcher.torchrun import failed_rank_status, strip_report

LOG_LINES = 400
CAUSE_S = 5.0  # how long a node that only lost another's ranks waits for the node that caused it to exit


class Trainer:
    """One start of the trainer. The other nodes start once the first has chosen the address of the rendezvous."""

    def __init__(self, place: Place, specs: Sequence[ProcessSpec], *, servers: Sequence[str]) -> None:
        self._place = place
        self._waiting = [spec.with_servers(servers) for spec in specs]
        self._terminated = False
        self.processes: list[Process] = []
        self._failed: Process | None = None
        self._first_failure: float | None = None
        self._status: int | None = None
        self._start_next()

    def poll(self) -> int | None:
        """0 once every node has exited with 0, or the status of the first that failed. Then nothing of it runs."""
        address = self.processes[0].address
        if self._waiting and address is not None and not self._terminated:
            host, _, port = address.rpartition(":")
            self._waiting = [spec.at(host, int(port)) for spec in self._waiting]
            while self._waiting:
                self._start_next()
        if self._status is None:
            self._status = self._exit_status()
            if self._status is not None:
                self.kill()
        return self._status

    def terminate(self) -> None:
        """Send SIGTERM to every node's torchrun."""
        self._terminated, self._waiting = True, []
        for process in self.processes:
            process.terminate()

    def kill(self) -> None:
        """Kill every node and wait."""
        kill_all(self.processes)

    @property
    def started(self) -> bool:
        """Whether every node has been started, the first one at a known address."""
        first = self.processes[0]
        return not self._waiting and (first.address is not None or not first.spec.needs_port)

    @property
    def lost(self) -> bool:
        """Whether it ended because a node was lost."""
        return any(process.lost for process in self.processes)

    def failure(self, status: int) -> RunError:
        """Why the trainer failed, with the last lines of the node that failed first."""
        process = self._failed or self.processes[0]
        lines = process.tail(LOG_LINES)
        status = failed_rank_status(lines) or status
        return RunError(
            f"the trainer failed with exit status {status}",
            log=process.spec.log,
            lines=strip_report(lines)[-20:],
            status=status,
        )

    def _exit_status(self) -> int | None:
        statuses = [(process, process.poll()) for process in self.processes]
        running = bool(self._waiting) or any(status is None for _, status in statuses)
        failed = [(process, status) for process, status in statuses if status]
        if not failed:
            return None if running else 0
        if running and self._terminated:
            return None  # nodes that were asked to end may take different times to do so
        self._first_failure = self._first_failure or time.monotonic()
        causes = [(process, status) for process, status in failed if rank_status(process) != names.EXIT_LOST_RANK]
        if running and not causes and time.monotonic() - self._first_failure < CAUSE_S:
            return None
        self._failed, status = (causes or failed)[0]
        return status

    def _start_next(self) -> None:
        self.processes.append(self._place.start(self._waiting.pop(0)))


def rank_status(process: Process) -> int | None:
    """The exit status of the rank that made a node's torchrun fail; None if its log has none."""
    return failed_rank_status(process.tail(LOG_LINES))
