"""Real runs still learn while servers, trainer and launcher are killed, stopped, cut off and run out of disk space.

``make faults`` injects more: ``FAULTS`` sets how many, ``SEED`` which, when and where.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from faults import schedule, small_disk
from faults.injectors import DEATHS, inject, seconds_until_back
from faults.invariants import check_run
from faults.report import Report
from faults.schedule import DECK, Fault
from faults.series import Series, seeded
from faults.small_disk import SmallDisk
from faults.watched import WatchedRun

RESERVE = 30  # steps; enough for a server to restart while another one serves


@seeded(40, per_run=schedule.PER_RUN)
def test_a_run_with_injected_faults_loses_nothing_and_learns(
    seed: int, faults: int, tmp_path: Path, fault_report: Callable[..., Report]
) -> None:
    report = fault_report("faults", DECK, DEATHS)
    servers, ranks = schedule.LAYOUTS[seed % len(schedule.LAYOUTS)]
    reason = small_disk.unavailable_reason()
    planned = schedule.schedule(seed, faults, without=["full disk"] if reason else [])
    if reason:
        report.not_injected("full disk", reason)
    replay = f"make faults SEED={seed} FAULTS={faults}"
    with contextlib.ExitStack() as stack:
        disk = None if reason else stack.enter_context(SmallDisk(tmp_path / "disk"))
        fileroot = tmp_path / "disk" if disk else tmp_path / "files"
        run_number = 0
        while planned:
            run_number += 1
            mark = f"{seed}-{run_number}-{os.getpid()}"
            run = WatchedRun(tmp_path / f"work{run_number}", fileroot, servers=servers, ranks=ranks, mark=mark)
            left = _survive(run, disk, Series(planned, replay, report))
            assert len(left) < len(planned), "the run ended before its first fault"
            planned = left
            shutil.rmtree(run.run)


def _survive(run: WatchedRun, disk: SmallDisk | None, series: Series) -> Sequence[Fault]:
    """Start a run, inject what it has time for, and check it. Returns the faults that are left for another run."""

    def check() -> None:
        run.advance_to_end()
        run.tick_until(lambda: run.wait_for_launcher(0.0) is not None, "the end of the run")
        run.check_nothing_left()
        check_run(run)

    with run:
        return series.survive(
            run, lambda one: inject(run, disk, one), check, lambda one: seconds_until_back(one, run), reserve=RESERVE
        )
