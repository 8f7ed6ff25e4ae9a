"""Runs a Python file with limits: ``python3 -I sandbox.py FILE SECONDS MEMORY_BYTES PROCESSES``.

The limits are set in this process before the file runs: CPU time, address space, processes of the user, file sizes,
open files. A seccomp filter refuses sockets and access to other processes. Nothing here needs privileges.
"""

from __future__ import annotations

import ctypes
import platform
import resource
import runpy
import signal
import sys
from pathlib import Path

FILE_BYTES = 16 << 20
OPEN_FILES = 64

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38  # prctl(2)
SECCOMP_MODE_FILTER = 2
# seccomp(2): audit architecture, and numbers of the system calls that are refused. In order: socket, io_uring_setup,
# ptrace, process_vm_readv, process_vm_writev, pidfd_getfd, unshare, setns.
REFUSED = {
    "x86_64": (0xC000003E, (41, 425, 101, 310, 311, 438, 272, 308)),
    "aarch64": (0xC00000B7, (198, 425, 117, 270, 271, 438, 97, 268)),
}
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
KILL_PROCESS, ALLOW, NOT_PERMITTED = 0x80000000, 0x7FFF0000, 0x00050001
X32 = 0x40000000  # system calls of the x32 ABI, which would bypass the numbers above


class Instruction(ctypes.Structure):
    """``struct sock_filter``."""

    _fields_ = [
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction))]


def instructions(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter for a machine; raises ``KeyError`` for one whose system calls are not known."""
    architecture, numbers = REFUSED[machine]
    checks = [(JUMP_GREATER_EQUAL, X32), *((JUMP_EQUAL, number) for number in numbers)]
    return [
        (LOAD, 0, 0, 4),  # the architecture
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, 0),  # the number of the system call
        *((code, len(checks) - index, 0, k) for index, (code, k) in enumerate(checks)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, NOT_PERMITTED),
    ]


def refuse_system_calls() -> None:
    """Install the filter in this process and its descendants."""
    listed = instructions(platform.machine())
    array = (Instruction * len(listed))(*listed)
    program = Program(len(listed), array)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), f"prctl {arguments[0]} failed")


def set_limits(seconds: int, memory_bytes: int, processes: int) -> None:
    """Set the limits of this process and its descendants. Those of memory and CPU time hold for each process."""
    for kind, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def main(file: str, seconds: str, memory_bytes: str, processes: str) -> None:
    """Set the limits and run the file as ``__main__``."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel ends the code first, not the tool server
    refuse_system_calls()
    set_limits(int(seconds), int(memory_bytes), int(processes))
    sys.argv = [file]
    runpy.run_path(file, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
