"""A real run on a Ray cluster still learns while its processes, actors, driver and nodes are killed and stopped.

``make faults-ray`` injects more: ``FAULTS`` sets how many, ``SEED`` which, when and where.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from faults import schedule
from faults.injected import Injected, inject_all, print_replay
from faults.invariants import check_files
from faults.ray_injectors import DECK, PER_RUN, inject
from faults.report import Report
from faults.watched_ray import STEPS, WatchedRay
from hack.testbed.ray_cluster import RayCluster

pytestmark = pytest.mark.scenario
FAULTS = int(os.environ.get("FAULTS") or 10)
FIRST_SEED = int(os.environ.get("SEED") or 1)
RUNS = schedule.runs(FIRST_SEED, FAULTS, per_run=PER_RUN)


@pytest.mark.parametrize(("seed", "faults"), RUNS, ids=[f"seed{seed}" for seed, _ in RUNS])
def test_a_run_on_ray_with_injected_faults_loses_nothing_and_learns(
    cluster: RayCluster, seed: int, faults: int, tmp_path: Path, fault_report: Report
) -> None:
    planned = schedule.schedule(seed, faults, deck=DECK, gaps=(1, 1, 2))
    injected: list[Injected] = []
    began = time.monotonic()
    try:
        with WatchedRay(cluster, tmp_path) as run:
            left = inject_all(run, planned, lambda one: inject(run, one), injected=injected, report=fault_report)
            assert not left, f"the run ended before {left[0]}"
            run.finish()
            run.check_nothing_left()
            check_files(run.steps.lines, run.run.directory, steps=STEPS)
            for one in injected:
                back = run.steps.next_after(one.step, one.over)
                fault_report.survived(one.fault.kind, None if back is None else back - one.at)
    finally:
        print_replay(f"make faults-ray SEED={seed} FAULTS={faults}", injected, began)
