"""One fault after the other, each when the run has got over the one before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from faults.report import Report
from faults.schedule import Fault
from faults.steps import Watched


@dataclass
class Struck:
    """A fault that is, or was, brought about."""

    fault: Fault
    at: float  # time.monotonic()
    step: int  # the last one that was done
    detail: str = ""  # what it hit
    server: int | None = None  # which, of a fault that hit one
    over: float = 0.0  # when it was lifted
    survived: float | None = None  # when the next step was done

    def text(self, began: float) -> str:
        """For the log of a run."""
        after = "not survived" if self.survived is None else f"next step {self.survived - self.at:.1f} s later"
        return f"{self.at - began:6.1f} s  after step {self.step:2d}  {self.fault.kind}: {self.detail}; {after}"


def strike_all(
    run: Watched,
    planned: Sequence[Fault],
    strike: Callable[[Struck], None],
    *,
    struck: list[Struck],
    report: Report,
) -> None:
    """Bring all faults about; those that were are added to ``struck``. ``strike`` brings one about, and lifts it."""
    for fault in planned:
        run.go_on(fault.after_steps)
        run.tick_for(fault.delay_s)
        assert not run.finished, f"the run was over before {fault}"
        struck.append(Struck(fault, time.monotonic(), run.steps.last))
        report.injected(fault.kind)
        strike(struck[-1])
        struck[-1].over = time.monotonic()
        run.go_on(1)
        run.settle()
        struck[-1].survived = time.monotonic()


def tell(replay: str, struck: Sequence[Struck], began: float) -> None:
    """What happened, and how it happens again; pytest shows it where the test fails."""
    print(f"replay: {replay}")
    for one in struck:
        print(one.text(began))
