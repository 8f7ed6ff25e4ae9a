"""Servers, trainer and launcher of real runs are killed, stopped, cut off, left without a disk: each run still learns.

``make faults`` for more of them: ``FAULTS`` is how many, ``SEED`` decides which, when and where.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from faults import schedule, small_disk
from faults.invariants import check_run
from faults.report import Report
from faults.small_disk import SmallDisk
from faults.strikes import Struck, strike
from faults.watched import WatchedRun

FAULTS = int(os.environ.get("FAULTS") or 40)
FIRST_SEED = int(os.environ.get("SEED") or 1)
# Seed and number of faults of each run.
RUNS = [
    (FIRST_SEED + number, min(schedule.PER_RUN, FAULTS - done))
    for number, done in enumerate(range(0, FAULTS, schedule.PER_RUN))
]


@pytest.mark.parametrize(("seed", "faults"), RUNS, ids=[f"seed{seed}" for seed, _ in RUNS])
def test_a_run_struck_by_faults_loses_nothing_and_learns(
    seed: int, faults: int, tmp_path: Path, fault_report: Report
) -> None:
    servers, ranks = schedule.LAYOUTS[seed % len(schedule.LAYOUTS)]
    reason = small_disk.why_not()
    planned = schedule.schedule(seed, faults, without=["full disk"] if reason else [])
    fault_report.not_injected(reason)
    struck: list[Struck] = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _tell(seed, faults, struck, began))
        disk = None if reason else stack.enter_context(SmallDisk(tmp_path / "disk"))
        fileroot = tmp_path / "disk" if disk else tmp_path / "files"
        mark = f"{seed}-{os.getpid()}"
        run = WatchedRun(tmp_path / "work", fileroot, servers=servers, ranks=ranks, mark=mark)
        stack.enter_context(run)
        for fault in planned:
            run.go_on(fault.after_steps)
            wait_until = time.monotonic() + fault.delay_s
            run.tick_until(lambda until=wait_until: time.monotonic() >= until, "time to pass")  # type: ignore[misc]
            assert not run.finished, f"the run was over before {fault}"
            struck.append(Struck(fault, time.monotonic(), run.steps.last))
            fault_report.injected(fault.kind)
            strike(run, disk, struck[-1])
            run.go_on(1)
            run.may_fail = False
            struck[-1].survived = time.monotonic()
        run.tick_until(lambda: run.finished and run.wait_for_launcher(0.0) is not None, "the end of the run")
        run.nothing_is_left()
        check_run(run)
        for one in struck:
            fault_report.survived(one, run)


def _tell(seed: int, faults: int, struck: list[Struck], began: float) -> None:
    """What happened, and how it happens again; pytest shows it where the test fails."""
    print(f"replay: make faults SEED={seed} FAULTS={faults}")
    for one in struck:
        print(one.text(began))
