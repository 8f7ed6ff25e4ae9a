"""Child processes, each under its own supervisor, and ports reserved for them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from areal_launcher.core import supervisor

SUPERVISOR = (sys.executable, "-I", "-S", supervisor.__file__)
GUARDED = (*SUPERVISOR, supervisor.GUARD)  # nothing outlives it even if it is killed together with this process
TAIL_BYTES = 64 * 1024


class SupervisedProcess:
    """A running command that logs to ``log``. It and its descendants never outlive this process."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        supervisor: Sequence[str] = SUPERVISOR,
        keep_open: Sequence[int] = (),
    ) -> None:
        """``supervisor``: command that runs ``argv`` and follows the protocol of ``supervisor.py``.

        ``keep_open``: descriptors that the supervisor inherits.
        """
        self.log = log
        self.started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(
                f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} ".encode()
                + os.fsencode(" ".join(argv or supervisor))
                + b"\n"
            )
            output.flush()
            self.log_start = output.tell()
            self._process = subprocess.Popen(
                [*supervisor, *argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=dict(env),
                pass_fds=keep_open,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def poll(self) -> int | None:
        """Exit status, 128 + n for signal n; None while running."""
        status = self._process.poll()
        return 128 - status if status is not None and status < 0 else status

    @property
    def lost(self) -> bool:
        """Whether its node took it away; False, since this process would be gone too."""
        return False

    @property
    def supervisor_killed(self) -> bool:
        """Whether the supervisor itself was killed, so that the command's processes may still run."""
        status = self._process.poll()
        return status is not None and status < 0

    def terminate(self) -> None:
        """Send SIGTERM to the command."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(supervisor.TERMINATE)
            self._process.stdin.flush()

    def kill(self) -> None:
        """Kill the command and its descendants; ``wait`` returns once they have exited."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self, timeout_s: float) -> int | None:
        """Exit status, or None if still running after ``timeout_s``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self.poll()

    def tail(self, lines: int = 20) -> list[str]:
        """The last log lines written since this start."""
        return last_lines(self.log, self.log_start, lines)


def last_lines(log: Path, start: int, lines: int) -> list[str]:
    """The last lines of a log after the offset ``start``, of at most ``TAIL_BYTES``."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line.rstrip() for line in text.split("\n") if line.strip()][-lines:]


def children(*, zombies: bool = False) -> set[int]:
    """Process ids of this process's children."""
    return {pid for pid, parent in supervisor.parents(zombies=zombies).items() if parent == os.getpid()}


def kill_orphans(spare: set[int]) -> None:
    """Kill all children of this subreaper except ``spare``: orphans whose supervisor was killed.

    Returns once they and their descendants have exited. Children of a dying process are reparented only after its last
    thread exits; until then it is an unreapable zombie.
    """
    deadline = time.monotonic() + supervisor.KILL_TIMEOUT_S
    while (orphans := children(zombies=True) - spare) and time.monotonic() < deadline:
        for orphan in orphans:
            supervisor.kill_all([orphan, *supervisor.descendants(orphan)])
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan, os.WNOHANG)
        time.sleep(0.002)


class ReservedPort:
    """A TCP port reserved for a server during the whole run, including restarts.

    The socket is bound but never listens and both sides set SO_REUSEADDR, so Linux also lets the server bind it
    (socket(7)), but never hands it out as a free port. Raises ``ValueError`` if ``port`` is taken.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            fix = "bring up the loopback interface" if error.errno == errno.EADDRNOTAVAIL else "choose another --port"
            raise ValueError(f"cannot use port {port} on {host}: {error.strerror}; {fix}") from error
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        """Release the port."""
        self._socket.close()
