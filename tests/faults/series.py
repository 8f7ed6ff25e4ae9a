"""What every test with injected faults does: choose runs, inject one fault after another, check the run, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest

from faults import schedule
from faults.cluster_injectors import Injector
from faults.injected import Injected, inject_all, print_replay
from faults.invariants import check_files
from faults.report import Report
from faults.schedule import Fault, Kind
from faults.steps import Watched
from faults.watched_cluster import STEPS, WatchedCluster

R = TypeVar("R", bound=WatchedCluster)
PER_CLUSTER_RUN = 10  # faults of a run on a Slurm or Ray cluster


def seeded(default: int, *, per_run: int) -> pytest.MarkDecorator:
    """Parametrizes a test with ``seed`` and ``faults`` of each run.

    The environment's ``FAULTS`` (else ``default``) is the number of faults in all, ``SEED`` the first seed.
    """
    faults, first = int(os.environ.get("FAULTS") or default), int(os.environ.get("SEED") or 1)
    runs = schedule.runs(first, faults, per_run=per_run)
    return pytest.mark.parametrize(("seed", "faults"), runs, ids=[f"seed{seed}" for seed, _ in runs])


@dataclass(frozen=True)
class Series:
    """The faults of one run. ``replay`` is the command that injects them again."""

    planned: Sequence[Fault]
    replay: str
    report: Report

    def survive(
        self,
        run: Watched,
        inject: Callable[[Injected], None],
        check: Callable[[], None],
        back: Callable[[Injected], float | None],
        *,
        reserve: int = 0,
    ) -> Sequence[Fault]:
        """Inject the faults, let the run end, and check it. Returns the faults that it had no steps left for.

        ``inject`` injects one fault and ends it, each after the run has recovered from the previous one. ``check``
        waits for the end of the run. ``back``: how long the run took to recover, if that was observed. ``reserve``:
        steps that must be left for a fault.
        """
        injected: list[Injected] = []
        began = time.monotonic()
        try:
            left = inject_all(run, self.planned, inject, injected=injected, report=self.report, reserve=reserve)
            check()
            for one in injected:
                self.report.survived(one.fault.kind, back(one))
            return left
        finally:
            print_replay(self.replay, injected, began)


def survive_in_cluster(
    run: R, injectors: Mapping[Kind, Injector[R]], seed: int, faults: int, *, target: str, report: Report
) -> None:
    """A run on a Slurm or Ray cluster survives its faults and learns. ``target``: of make."""
    planned = schedule.schedule(seed, faults, deck=dict.fromkeys(injectors, 1), gaps=(1, 1, 2))
    series = Series(planned, f"make {target} SEED={seed} FAULTS={faults}", report)

    def check() -> None:
        run.finish()
        check_files(run.steps.lines, run.run, steps=STEPS)

    def back(one: Injected) -> float | None:
        after = run.steps.next_after(one.step, one.over)
        return None if after is None else after - one.at

    with run:
        left = series.survive(run, lambda one: injectors[one.fault.kind](run, one), check, back)
    assert not left, f"the run ended before {left[0]}"
