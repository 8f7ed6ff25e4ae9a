import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_trainer.rollout.episode import Episode, Prompt
from areal_trainer.rollout.executor import Executor
from areal_trainer.rollout.pacing import Pacer
from areal_trainer.rollout.staleness import StalenessGate
from support.rollout_fakes import ControlledWorkflow, settle


def test_capacity_is_what_staleness_and_concurrency_leave():
    gate = StalenessGate(batch_size=4, max_staleness=2, max_concurrent=10)
    assert gate.capacity() == 10  # min(10 − 0, (2 + 0 + 1)·4 − 0)
    for _ in range(10):
        gate.started()
    assert gate.capacity() == 0  # min(10 − 10, 12 − 10)
    for _ in range(3):
        gate.finished(accepted=True)
    assert gate.capacity() == 2  # min(10 − 7, 12 − (3 + 7))
    gate.set_version(1)
    assert gate.capacity() == 3  # min(10 − 7, 16 − (3 + 7))


def test_a_rejected_episode_makes_room_for_another():
    gate = StalenessGate(batch_size=2, max_staleness=0, max_concurrent=8)
    gate.started()
    gate.started()
    assert gate.capacity() == 0
    gate.finished(accepted=False)
    assert gate.capacity() == 1


def test_a_resume_counts_what_earlier_steps_consumed():
    gate = StalenessGate(batch_size=4, max_staleness=1, max_concurrent=100, version=10)
    assert gate.accepted == 40
    assert gate.capacity() == 8  # (1 + 10 + 1)·4 − 40; from accepted = 0 it would be 48


def test_no_concurrency_still_lets_one_episode_run():
    assert StalenessGate(batch_size=4, max_staleness=0, max_concurrent=0).capacity() == 1


@pytest.mark.parametrize(("batch_size", "max_staleness"), [(0, 0), (1, -1)])
def test_senseless_bounds_are_refused(batch_size, max_staleness):
    with pytest.raises(ValueError, match="set it to"):
        StalenessGate(batch_size=batch_size, max_staleness=max_staleness, max_concurrent=1)


class Run:
    """A trainer and its executor, driven step by step; checks each batch that it takes."""

    def __init__(self, *, batch: int, eta: int, concurrent: int, paced: bool = False) -> None:
        self.batch, self.eta, self.concurrent, self.paced = batch, eta, concurrent, paced
        self.rows = itertools.count()
        self.trained = 0  # steps, and the newest version of the weights
        self.consumed_rows: list[int] = []
        self.start(version=0)

    def start(self, version: int) -> None:
        gate = StalenessGate(batch_size=self.batch, max_staleness=self.eta, max_concurrent=self.concurrent)
        self.workflow = ControlledWorkflow()
        pacer = Pacer(batch_size=self.batch, max_staleness=self.eta) if self.paced else None
        self.executor = Executor(None, gate, max_failed=10**9, pacer=pacer)
        self.executor.start_at(version)
        self.workflow.executor = self.executor
        self.waiting: asyncio.Task[list[Episode] | None] | None = None

    async def resume(self) -> None:
        if self.waiting is not None:
            await self.take()  # what the executor has handed out is trained before a checkpoint is written
        state = self.executor.state_dict()
        await self.stop()
        self.start(self.trained)
        rows = self.executor.load_state_dict(state, version=self.trained)
        self.executor.feed([Prompt(row, self.workflow) for row in rows])
        await settle()

    async def stop(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
        await self.executor.close()

    async def take(self) -> bool:
        """Go on taking a batch; True when a step was trained."""
        while True:
            if self.waiting is None:
                take = self.executor.take(self.batch, feeding=True, update_pending=lambda: True)
                self.waiting = asyncio.create_task(take)
            await settle()
            if not self.waiting.done():
                return False
            episodes, self.waiting = self.waiting.result(), None
            if episodes is None:
                self.executor.feed([Prompt({"row": next(self.rows)}, self.workflow) for _ in range(self.batch)])
                continue
            self.check(episodes)
            self.trained += 1
            return True

    def check(self, episodes: list[Episode]) -> None:
        assert len(episodes) == self.batch
        for episode in episodes:
            for trajectory in episode.trajectories:
                assert 0 <= self.trained - trajectory.head_version <= self.eta
        rows = [episode.prompt.data["row"] for episode in episodes]
        if self.eta == 0:
            assert rows == sorted(rows)
        self.consumed_rows += rows

    async def play(self, moves: list[tuple[str, int]]) -> None:
        for move, number in moves:
            running = list(self.workflow.running)
            if move == "take":
                await self.take()
            elif move == "publish":
                self.executor.set_version(min(self.executor.gate.version + 1, self.trained))
            elif move == "resume":
                await self.resume()
            elif running:
                self.workflow.finish(running[number % len(running)], move)
            await settle()
            gate = self.executor.gate
            assert gate.accepted + gate.running <= (self.eta + gate.version + 1) * self.batch
            assert gate.running <= max(1, self.concurrent)
        await self.goes_on()
        await self.stop()
        assert len(set(self.consumed_rows)) == len(self.consumed_rows)

    async def goes_on(self) -> None:
        """Whatever happened, training can go on."""
        goal = self.trained + 3
        for _ in range(1000):
            if self.trained >= goal:
                return
            self.executor.set_version(self.trained)
            await self.take()
            for row in list(self.workflow.running):
                self.workflow.finish(row)
            await settle()
        raise AssertionError(f"no step after step {self.trained}")


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["accept", "accept", "accept", "reject", "fail", "take", "take", "publish", "resume"]),
        st.integers(0, 63),
    ),
    min_size=60,
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(batch=st.integers(1, 4), eta=st.integers(0, 3), concurrent=st.integers(0, 12), paced=st.booleans(), moves=MOVES)
def test_no_schedule_makes_a_consumed_sample_older_than_allowed(batch, eta, concurrent, paced, moves):
    async def scenario() -> None:
        await Run(batch=batch, eta=eta, concurrent=concurrent, paced=paced).play(moves)

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 4), concurrent=st.integers(1, 12), moves=MOVES)
def test_eta_0_trains_only_on_samples_of_the_weights_at_hand(batch, concurrent, moves):
    async def scenario() -> None:
        run = Run(batch=batch, eta=0, concurrent=concurrent)
        await run.play([move for move in moves if move[0] not in ("reject", "fail")])
        assert run.consumed_rows == list(range(len(run.consumed_rows)))  # the prompts, in their order, none left out

    asyncio.run(scenario())
