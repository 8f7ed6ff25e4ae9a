"""Runs on a real cluster still learn while faults hit their pods, containers, node and API server.

``make faults-kind`` injects more: ``FAULTS`` sets how many, ``SEED`` which, when and where.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults import schedule
from faults.injected import Injected, inject_all, print_replay
from faults.invariants import check_files
from faults.pod_injectors import DECKS, PER_RUN, inject, seconds_until_back
from faults.report import Report
from faults.watched_pods import WatchedPods, watched_pods
from hack.testbed.helm_release import Release

pytestmark = pytest.mark.scenario
FAULTS = int(os.environ.get("FAULTS") or 20)
FIRST_SEED = int(os.environ.get("SEED") or 1)
RUNS = schedule.runs(FIRST_SEED, FAULTS, per_run=PER_RUN)


@pytest.mark.parametrize(("seed", "faults"), RUNS, ids=[f"seed{seed}" for seed, _ in RUNS])
def test_a_run_in_pods_with_injected_faults_loses_nothing_and_learns(
    release: Release, namespace: str, seed: int, faults: int, tmp_path: Path, fault_report: Report
) -> None:
    layout = list(DECKS)[(seed + 1) % len(DECKS)]
    planned = schedule.schedule(seed, faults, deck=DECKS[layout], gaps=(1, 1, 2))
    injected: list[Injected] = []
    began = time.monotonic()
    try:
        with watched_pods(release, namespace, layout) as run:
            left = inject_all(run, planned, lambda one: inject(run, one), injected=injected, report=fault_report)
            assert not left, f"the run ended before {left[0]}"
            run.finish(tmp_path)
            check_files(run.steps.lines, tmp_path)
            check_events(run)
            run.check_nothing_left()
            for one in injected:
                fault_report.survived(one.fault.kind, seconds_until_back(one, run))
    finally:
        print_replay(f"make faults-kind SEED={seed} FAULTS={faults}", injected, began)


def check_events(run: WatchedPods) -> None:
    """Events report what the status counts."""
    counts, reasons = run.counts(), _reasons(run)
    assert counts["attempt"] == 1 + counts["restarts"] + counts["disruptions"], counts
    assert ("Restarted" in reasons) == (counts["restarts"] > 0), (counts, reasons)
    assert ("Disrupted" in reasons) == (counts["disruptions"] > 0), (counts, reasons)


def _reasons(run: WatchedPods) -> Sequence[str]:
    about = f"involvedObject.kind=GRPOExperiment,involvedObject.name={run.run.name}"
    path = "jsonpath={.items[*].reason}"
    return run.run.kubectl("get", "events", "--field-selector", about, "--output", path).split()
