"""Runs one command so that none of its processes outlives the launcher. Started by path; standard library only.

Standard input is a pipe from the launcher. A ``T`` sends SIGTERM to the command, once; end of file (the launcher closed
it or died) kills the command and all its descendants, even in other process groups and sessions: Linux reparents
orphans to the nearest subreaper, which is this process. Exits with the command's status, or 128 + n if signal n killed
it.

After ``--guard`` the command runs under a second supervisor, whose pipe this one holds. If one of the two is killed,
the other kills the descendants.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TERMINATE = b"T"
GUARD = "--guard"
CANNOT_START = 127
KILL_TIMEOUT_S = 30.0  # a process in an uninterruptible system call (driver, NFS) dies only when it returns


def prctl(option: int, value: int) -> None:
    """Call prctl(2). Raises ``OSError`` if it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def parents(*, zombies: bool = False) -> dict[int, int]:
    """Maps every live process to its parent; with ``zombies`` also processes that have died but are not reaped."""
    parent_of: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                # The command name in parentheses may itself contain spaces and parentheses.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if zombies or state != b"Z":
            parent_of[int(entry)] = int(parent)
    return parent_of


def descendants(root: int) -> list[int]:
    """All descendants of ``root``, children before grandchildren."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, []))
    return tree[1:]


def kill_all(pids: list[int], signum: int = signal.SIGKILL) -> None:
    """Send a signal to processes, ignoring those that have exited."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def kill_tree(root: int) -> list[int]:
    """Kill all descendants, including any forked meanwhile; returns those that do not die in time."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while True:
        left = descendants(root)
        kill_all(left)
        reap()
        # A dead process whose threads have not all exited is a zombie that cannot be reaped yet.
        if not left and not has_children():
            return []
        if time.monotonic() > deadline:
            return left
        time.sleep(0.002)


def has_children() -> bool:
    """Whether this process has children, including zombies."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def reap() -> dict[int, int]:
    """Reap exited children and return their wait statuses."""
    statuses: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            statuses[pid] = status
    return statuses


def start(argv: list[str], *, standard_input: int | None = None) -> int:
    """Fork and exec ``argv``; returns its process id.

    By default it has an empty standard input and dies with this process. With ``standard_input``, the end of a pipe, it
    is a supervisor, which ends by itself when the pipe is closed.
    """
    supervisor = os.getpid()
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE)
    # A signal to the child is held until the child has its own handlers; until then this process's would swallow it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if pid != 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return pid
    try:
        for signum in signals:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if standard_input is None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(CANNOT_START)
            standard_input = os.open(os.devnull, os.O_RDONLY)
        os.dup2(standard_input, 0)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())
    os._exit(CANNOT_START)


def start_guarded(argv: list[str]) -> int:
    """Start a supervisor of ``argv`` that ends when this process does; returns its process id."""
    reader, _ = os.pipe2(os.O_CLOEXEC)  # the other end stays open until this process ends
    pid = start([sys.executable, "-I", "-S", os.path.abspath(__file__), *argv], standard_input=reader)
    os.close(reader)
    return pid


def wait(pid: int, wakeup: int, *, forward_signals: bool) -> int:
    """Wait for ``pid`` to exit or for the launcher to close the pipe; the exit status."""
    terminated = False
    while True:
        ready, _, _ = select.select([0, wakeup], [], [])
        signals = os.read(wakeup, 64) if wakeup in ready else b""
        statuses = reap()
        if pid in statuses:
            status = os.waitstatus_to_exitcode(statuses[pid])
            return status if status >= 0 else 128 - status
        signalled = signal.SIGTERM in signals or signal.SIGINT in signals
        asked = False
        if 0 in ready:
            data = os.read(0, 64)
            if not data:
                return 128 + signal.SIGKILL
            asked = TERMINATE in data
        if not terminated and (asked or (signalled and forward_signals)):
            kill_all([pid], signal.SIGTERM)
        terminated = terminated or asked or signalled


def main(argv: list[str], *, forward_signals: bool = True) -> int:
    """Run ``argv`` until it exits, then kill all its descendants.

    ``forward_signals``: False if whoever signals this process also signals the command, as Slurm does for a step.
    """
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeup, wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(signum, lambda *_: None)
    signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
    pid = start_guarded(argv[1:]) if argv[0] == GUARD else start(argv)
    try:
        return wait(pid, wakeup, forward_signals=forward_signals)
    finally:
        if left := kill_tree(os.getpid()):
            os.write(2, f"processes {left} did not exit within {KILL_TIMEOUT_S:.0f} s of SIGKILL\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
