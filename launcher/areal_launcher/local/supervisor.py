"""Runs one command so that nothing of it outlives the launcher; started by path, with the standard library alone.

Standard input is the launcher's lifeline: a ``T`` on it terminates the command gently, its end (the launcher let go, or
died of whatever) kills the command and everything that descends from it, process groups and sessions of their own
included. Linux hands orphans to the nearest subreaper, which is this process, so none is out of sight.
Exits with the command's status, 128 + n when signal n ended it.
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
CANNOT_START = 127
KILL_TIMEOUT_S = 30.0  # a process in an uninterruptible call (a driver, a network file system) dies when that returns


def prctl(option: int, value: int) -> None:
    """Call prctl(2); ``OSError`` where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def parents(*, zombies: bool = False) -> dict[int, int]:
    """Parent of every process that is alive; with ``zombies`` of those too that are dead and still there."""
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                # The name, in parentheses, may hold spaces and parentheses itself.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if zombies or state != b"Z":
            found[int(entry)] = int(parent)
    return found


def descendants(root: int) -> list[int]:
    """Every process below ``root``, children before grandchildren."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found[1:]


def kill_all(pids: list[int], signum: int = signal.SIGKILL) -> None:
    """Signal processes, some of which may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def kill_tree(root: int) -> list[int]:
    """Kill everything below this process, what forks meanwhile included; those that the kernel holds are returned."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while True:
        left = descendants(root)
        kill_all(left)
        reap()
        # A dead process whose threads are still leaving is a zombie that cannot be waited for yet.
        if not left and not has_children():
            return []
        if time.monotonic() > deadline:
            return left
        time.sleep(0.002)


def has_children() -> bool:
    """Whether this process has children, zombies included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def reap() -> dict[int, int]:
    """Wait statuses of the children that have ended."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def start(argv: list[str]) -> int:
    """Fork and exec ``argv`` with an empty standard input; its process id."""
    supervisor = os.getpid()
    pid = os.fork()
    if pid != 0:
        return pid
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(signum, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(CANNOT_START)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())
    os._exit(CANNOT_START)


def wait(pid: int, wakeup: int) -> int:
    """Exit status of ``pid``, which may end by itself or by the lifeline."""
    while True:
        ready, _, _ = select.select([0, wakeup], [], [])
        signals = os.read(wakeup, 64) if wakeup in ready else b""
        ended = reap()
        if pid in ended:
            status = os.waitstatus_to_exitcode(ended[pid])
            return status if status >= 0 else 128 - status
        gentle = signal.SIGTERM in signals or signal.SIGINT in signals
        if 0 in ready:
            word = os.read(0, 64)
            if not word:
                return 128 + signal.SIGKILL
            gentle = gentle or TERMINATE in word
        if gentle:
            kill_all([pid], signal.SIGTERM)


def main(argv: list[str]) -> int:
    """Run ``argv`` to its end, then leave nothing of it behind."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wakeup, wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(signum, lambda *_: None)
    signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
    pid = start(argv)
    try:
        return wait(pid, wakeup)
    finally:
        if left := kill_tree(os.getpid()):
            os.write(2, f"processes {left} do not die within {KILL_TIMEOUT_S:.0f} s of SIGKILL\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
