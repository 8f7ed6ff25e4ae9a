"""CPU cores for a rank that computes on the CPU beside its GPU."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # "<quota> <period>" in microseconds, or "max <period>": cgroup v2


def share_of_cores(ranks: int) -> int:
    """Threads for each of ``ranks`` processes on this machine, at least one.

    torchrun sets OMP_NUM_THREADS to 1 for them. Counts the cores that the process may run on, up to its container's
    limit.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_LIMIT.read_text().split()
    except FileNotFoundError:  # cgroup v1, or the root cgroup
        quota, period = "max", "1"
    if quota != "max":
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores // ranks)
