"""Real runs still learn while servers, trainer and launcher are killed, stopped, cut off and run out of disk space.

``make faults`` injects more: ``FAULTS`` sets how many, ``SEED`` which, when and where.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults import schedule, small_disk
from faults.injected import Injected, inject_all, print_replay
from faults.injectors import inject, seconds_until_back
from faults.invariants import check_run
from faults.report import Report
from faults.schedule import Fault
from faults.small_disk import SmallDisk
from faults.watched import WatchedRun

FAULTS = int(os.environ.get("FAULTS") or 40)
FIRST_SEED = int(os.environ.get("SEED") or 1)
RESERVE = 30  # steps; enough for a server to restart while another one serves
RUNS = schedule.runs(FIRST_SEED, FAULTS, per_run=schedule.PER_RUN)


@pytest.mark.parametrize(("seed", "faults"), RUNS, ids=[f"seed{seed}" for seed, _ in RUNS])
def test_a_run_with_injected_faults_loses_nothing_and_learns(
    seed: int, faults: int, tmp_path: Path, fault_report: Report
) -> None:
    servers, ranks = schedule.LAYOUTS[seed % len(schedule.LAYOUTS)]
    reason = small_disk.unavailable_reason()
    planned = schedule.schedule(seed, faults, without=["full disk"] if reason else [])
    if reason:
        fault_report.not_injected("full disk", reason)
    with contextlib.ExitStack() as stack:
        disk = None if reason else stack.enter_context(SmallDisk(tmp_path / "disk"))
        fileroot = tmp_path / "disk" if disk else tmp_path / "files"
        replay = f"make faults SEED={seed} FAULTS={faults}"
        run_number = 0
        while planned:
            run_number += 1
            mark = f"{seed}-{run_number}-{os.getpid()}"
            run = WatchedRun(tmp_path / f"work{run_number}", fileroot, servers=servers, ranks=ranks, mark=mark)
            left = _inject(run, disk, planned, fault_report, replay)
            assert len(left) < len(planned), "the run ended before its first fault"
            planned = left
            shutil.rmtree(run.run)


def _inject(
    run: WatchedRun, disk: SmallDisk | None, planned: Sequence[Fault], report: Report, replay: str
) -> Sequence[Fault]:
    """Start a run, inject what it has time for, and check it. Returns the faults that are left for another run."""
    injected: list[Injected] = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: print_replay(replay, injected, began))
        stack.enter_context(run)
        left = inject_all(
            run, planned, lambda one: inject(run, disk, one), injected=injected, report=report, reserve=RESERVE
        )
        run.advance_to_end()
        run.tick_until(lambda: run.wait_for_launcher(0.0) is not None, "the end of the run")
        run.check_nothing_left()
        check_run(run)
        for one in injected:
            report.survived(one.fault.kind, seconds_until_back(one, run))
    return left
