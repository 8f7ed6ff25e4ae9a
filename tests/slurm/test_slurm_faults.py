"""A real run on Slurm still learns while its processes, its job and the cluster's daemons are struck.

``FAULTS`` sets how many faults are injected (at most 12, each kind once), ``SEED`` which, when and where.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from faults import schedule
from faults.injected import Injected, inject_all, print_replay
from faults.invariants import check_files
from faults.report import Report
from faults.slurm_injectors import DECK, inject
from faults.watched_slurm import STEPS, WatchedSlurm
from hack.testbed.slurm_cluster import SlurmCluster

FAULTS = int(os.environ.get("FAULTS") or 10)
SEED = int(os.environ.get("SEED") or 1)


@pytest.mark.scenario
def test_a_run_on_slurm_with_injected_faults_loses_nothing_and_learns(
    cluster: SlurmCluster, tmp_path: Path, fault_report: Report
) -> None:
    planned = schedule.schedule(SEED, FAULTS, deck=DECK, gaps=(0, 1, 2))
    injected: list[Injected] = []
    began = time.monotonic()
    try:
        with WatchedSlurm(cluster, tmp_path) as run:
            left = inject_all(run, planned, lambda one: inject(run, one), injected=injected, report=fault_report)
            assert not left, f"the run ended before {left[0]}"
            run.advance_to_end()
            assert run.follower.wait(run.patience_s) == 0, run.console()
            run.steps.poll()
            check_files(run.steps.lines, run.run, steps=STEPS)
            run.check_nothing_left()
            for one in injected:
                back = run.steps.next_after(one.step, one.at)
                fault_report.survived(one.fault.kind, None if back is None else back - one.at)
    finally:
        print_replay(f"make faults-slurm SEED={SEED} FAULTS={FAULTS}", injected, began)
