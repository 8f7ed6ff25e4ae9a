"""Injects faults one after another, each after the run has recovered from the previous one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from faults.report import Report
from faults.schedule import Fault
from faults.steps import Watched


@dataclass
class Injected:
    """A fault that was injected."""

    fault: Fault
    at: float  # time.monotonic()
    step: int  # last completed step
    detail: str = ""  # what was hit
    server: int | None = None  # index of the server that was hit
    over: float = 0.0  # when the fault ended
    survived: float | None = None  # when the next step completed

    def text(self, began: float) -> str:
        """One line for the run's log."""
        after = "not survived" if self.survived is None else f"next step {self.survived - self.at:.1f} s later"
        return f"{self.at - began:6.1f} s  after step {self.step:2d}  {self.fault.kind}: {self.detail}; {after}"


def inject_all(
    run: Watched,
    planned: Sequence[Fault],
    inject: Callable[[Injected], None],
    *,
    injected: list[Injected],
    report: Report,
    reserve: int = 0,
) -> Sequence[Fault]:
    """Inject faults and append each to ``injected``. ``inject`` injects one fault and ends it.

    Returns the faults that were left when at most ``reserve`` steps remained: how many steps pass while a killed server
    restarts depends on the machine.
    """
    for number, fault in enumerate(planned):
        run.advance(fault.after_steps)
        run.tick_for(fault.delay_s)
        if run.steps.last >= run.total - reserve:
            return planned[number:]
        injected.append(Injected(fault, time.monotonic(), run.steps.last))
        report.injected(fault.kind)
        inject(injected[-1])
        injected[-1].over = time.monotonic()
        run.advance(1)
        run.fault_survived()
        injected[-1].survived = time.monotonic()
    return []


def print_replay(replay: str, injected: Sequence[Injected], began: float) -> None:
    """Print what happened and how to replay it; pytest shows this when the test fails."""
    print(f"replay: {replay}")
    for one in injected:
        print(one.text(began))
