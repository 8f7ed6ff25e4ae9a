"""Runs on a real cluster still learn while faults hit their pods, containers, node and API server.

``make faults-kind`` injects more: ``FAULTS`` sets how many, ``SEED`` which, when and where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from faults import schedule
from faults.invariants import check_files
from faults.pod_injectors import DEATHS, DECKS, KINDS, PER_RUN, inject, seconds_until_back
from faults.report import Report
from faults.series import Series, seeded
from faults.watched_pods import WatchedPods, watched_pods
from hack.testbed.helm_release import Release


@pytest.mark.scenario
@seeded(20, per_run=PER_RUN)
def test_a_run_in_pods_with_injected_faults_loses_nothing_and_learns(
    release: Release, namespace: str, seed: int, faults: int, tmp_path: Path, fault_report: Callable[..., Report]
) -> None:
    layout = list(DECKS)[(seed + 1) % len(DECKS)]
    planned = schedule.schedule(seed, faults, deck=DECKS[layout], gaps=(1, 1, 2))
    report = fault_report("faults in pods", KINDS, DEATHS)
    series = Series(planned, f"make faults-kind SEED={seed} FAULTS={faults}", report)
    with watched_pods(release, namespace, layout) as run:

        def check() -> None:
            run.finish(tmp_path)
            check_files(run.steps.lines, tmp_path)
            check_events(run)
            run.check_nothing_left()

        left = series.survive(run, lambda one: inject(run, one), check, lambda one: seconds_until_back(one, run))
    assert not left, f"the run ended before {left[0]}"


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
