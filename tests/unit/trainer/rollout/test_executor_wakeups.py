"""Whoever waits for a batch is woken by everything that ends the wait: random runs of an executor against its rules."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from areal_trainer.rollout.episode import Episode, Prompt, RolloutError
from areal_trainer.rollout.executor import Executor
from areal_trainer.rollout.pacing import Pacer
from areal_trainer.rollout.staleness import StalenessGate
from areal_trainer.servers.fleet import NoServerError
from support.rollout_fakes import ControlledWorkflow, settle


@dataclass
class Wait:
    """A call of ``take`` under way."""

    count: int
    feeding: bool
    task: asyncio.Task[list[Episode] | None]


class Run:
    """An executor whose episodes the test finishes, and a caller waiting for its next batch."""

    def __init__(self, *, batch: int, eta: int, concurrent: int, queue_size: int | None, paced: bool) -> None:
        gate = StalenessGate(batch_size=batch, max_staleness=eta, max_concurrent=concurrent)
        engine: Any = None
        pacer = Pacer(batch_size=batch, max_staleness=eta) if paced else None
        self.executor = Executor(engine, gate, max_failed=5, queue_size=queue_size, pacer=pacer)
        self.workflow = ControlledWorkflow()
        self.workflow.executor = self.executor
        self.batch = batch
        self.rows = 0
        self.updating = False
        self.wait: Wait | None = None

    def feed(self, number: int) -> None:
        prompts = [Prompt({"row": self.rows + i}, self.workflow) for i in range(number)]
        self.rows += number
        self.executor.feed(prompts)

    def end(self, number: int, outcome: str) -> None:
        """Of the episodes under way, one ends."""
        if not self.workflow.running:
            return
        row = list(self.workflow.running)[number % len(self.workflow.running)]
        if outcome == "no server":
            self.workflow.running[row].set_exception(NoServerError("no server was ready"))
        elif outcome == "cancel":
            self.workflow.running[row].cancel()
        else:
            self.workflow.finish(row, outcome)

    def take(self, more: int, *, feeding: bool) -> None:
        if self.wait is None:
            count = self.batch if feeding else self.batch + more
            taking = self.executor.take(count, feeding=feeding, update_pending=lambda: self.updating)
            self.wait = Wait(count, feeding, asyncio.ensure_future(taking))

    def give_up(self) -> None:
        """As a wait whose time is over."""
        if self.wait is not None:
            self.wait.task.cancel()

    def update(self, *, begins: bool) -> None:
        """Weights are on their way to the servers from now on, or have arrived."""
        if self.updating and not begins:
            self.executor.set_version(self.executor.gate.version + 1)
        self.updating = begins
        self.executor.notify()  # as the engine does at the end of an update

    async def check(self) -> None:
        """No caller waits for a batch that is ready or that can never be."""
        await settle()
        if self.wait is None:
            return
        if self.wait.task.done():
            if not self.wait.task.cancelled():
                self.wait.task.exception()
            self.wait = None
            return
        assert self.executor.error is None
        assert not (self.wait.feeding and self.executor.prompts_wanted() > 0)
        assert not self.executor.is_complete(self.wait.count)
        self.executor.check_progress(self.wait.count, update_pending=self.updating)


Step = Callable[[Run], None]
OUTCOMES = [*["accept"] * 10, *["reject"] * 4, "fail", "cancel", "no server"]
FEED = st.integers(1, 6).map(lambda n: (f"feed {n}", lambda run: run.feed(n)))
END = st.tuples(st.integers(0, 9), st.sampled_from(OUTCOMES)).map(
    lambda what: (f"end {what}", lambda run: run.end(*what))
)
TAKE = st.tuples(st.integers(0, 2), st.booleans()).map(
    lambda what: (f"take {what}", lambda run: run.take(what[0], feeding=what[1]))
)
UPDATE = st.booleans().map(lambda begins: (f"update {begins}", lambda run: run.update(begins=begins)))
REST: st.SearchStrategy[tuple[str, Step]] = st.sampled_from(
    [
        ("version", lambda run: run.executor.set_version(run.executor.gate.version + 1)),
        ("give up", lambda run: run.give_up()),
        ("pause", lambda run: run.executor.pause()),
        ("resume", lambda run: run.executor.resume()),
    ]
)
STEPS: st.SearchStrategy[tuple[str, Step]] = st.one_of(FEED, END, END, END, TAKE, TAKE, UPDATE, REST)


async def played(run: Run, steps: list[tuple[str, Step]]) -> None:
    for _, step in steps:
        step(run)
        await run.check()
    run.executor.stop(RolloutError("the end"))
    await run.check()
    assert run.wait is None
    await run.executor.close()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    batch=st.integers(1, 4),
    eta=st.integers(0, 3),
    concurrent=st.integers(1, 8),
    paced=st.booleans(),
    more_queue=st.none() | st.integers(0, 3),
    steps=st.lists(STEPS, min_size=30, max_size=50),
)
def test_no_wait_for_a_batch_outlasts_its_reason(
    batch: int, eta: int, concurrent: int, paced: bool, more_queue: int | None, steps: list[tuple[str, Step]]
) -> None:
    queue_size = None if more_queue is None else batch + more_queue
    asyncio.run(played(Run(batch=batch, eta=eta, concurrent=concurrent, queue_size=queue_size, paced=paced), steps))
