import asyncio

import pytest

from areal_trainer.rollout.episode import Prompt, RolloutError, run_prompts
from areal_trainer.rollout.executor import Executor
from areal_trainer.rollout.pacing import Pacer
from areal_trainer.rollout.staleness import StalenessGate
from areal_trainer.rollout.workflow import RolloutWorkflow
from areal_trainer.servers.fleet import NoServerError
from support.rollout_fakes import ControlledWorkflow, sample, settle


class Set:
    """An executor with episodes that the test finishes; rows are numbered from 0."""

    def __init__(self, *, batch=2, eta=0, concurrent=100, max_failed=2, accept=None, **bounds):
        gate = StalenessGate(batch_size=batch, max_staleness=eta, max_concurrent=concurrent)
        self.workflow = ControlledWorkflow()
        self.executor = Executor(None, gate, max_failed=max_failed, **bounds)
        self.workflow.executor = self.executor
        self.accept = accept

    def feed(self, *rows):
        self.executor.feed([Prompt({"row": row}, self.workflow, self.accept) for row in rows])

    async def end(self, row, outcome="accept"):
        await settle()
        self.workflow.finish(row, outcome)
        await settle()

    async def take(self, count=2):
        async with asyncio.timeout(1):
            episodes = await self.executor.take(count, feeding=False, update_pending=lambda: False)
        return [episode.prompt.data["row"] for episode in episodes]


async def test_a_batch_is_in_the_order_of_the_prompts_whichever_ends_first():
    runs = Set(batch=3)
    runs.feed(0, 1, 2)
    for row in (2, 0, 1):
        await runs.end(row)
    assert await runs.take(3) == [0, 1, 2]


async def test_younger_episodes_wait_where_older_ones_would_no_longer_fit_into_the_batches_left():
    runs = Set(batch=2, eta=2)
    runs.feed(*range(10))  # 0 … 5 start at version 0: steps 0, 1 and 2 must take them
    await runs.end(0)
    await runs.end(1)
    assert await runs.take() == [0, 1]
    runs.executor.set_version(1)
    await runs.end(6)
    await runs.end(7)
    taking = asyncio.ensure_future(runs.take())
    await settle()
    assert not taking.done()  # with 6 and 7 gone, four of version 0 would be left for the one batch of step 2
    await runs.end(4)
    await runs.end(3)
    assert await taking == [3, 4]


async def test_rejected_episodes_are_replaced_by_the_next_prompts():
    runs = Set()
    runs.feed(0, 1, 2, 3)
    await runs.end(0, "reject")
    await runs.end(1)
    assert list(runs.workflow.running) == [2]
    await runs.end(2)
    assert await runs.take() == [1, 2]
    assert (runs.executor.counters.accepted, runs.executor.counters.rejected) == (2, 1)


async def test_the_accept_filter_rejects_whole_groups():
    runs = Set(accept=lambda group: group[0].reward != 1)  # a row's reward is its number
    runs.feed(0, 1, 2)
    await runs.end(0)
    await runs.end(1)
    await runs.end(2)
    assert await runs.take() == [0, 2]


async def test_a_filter_that_raises_is_a_failed_episode_and_hangs_nothing():
    runs = Set(max_failed=0, accept=lambda group: group[7])
    runs.feed(0, 1)
    await runs.end(0)
    with pytest.raises(RolloutError, match="IndexError"):
        await runs.take()


async def test_failures_in_a_row_above_the_bound_stop_with_the_last_error_and_its_row():
    runs = Set(max_failed=2)
    runs.feed(0, 1, 2, 3)
    await runs.end(0, "fail")
    await runs.end(1, "fail")
    assert list(runs.workflow.running) == [2, 3]  # replaced so far
    await runs.end(2, "fail")
    with pytest.raises(RolloutError, match=r"3 episodes in a row.*RuntimeError: row 2 failed.*'row': 2"):
        await runs.take()


async def test_a_success_forgives_earlier_failures():
    runs = Set(max_failed=1)
    runs.feed(*range(6))
    await runs.end(0, "fail")
    await runs.end(1)
    await runs.end(2, "fail")
    await runs.end(3)
    assert await runs.take() == [1, 3]


async def test_rejections_without_end_stop_the_run_with_an_explanation():
    runs = Set(batch=2, max_rejected_batches=2)
    runs.feed(*range(10))
    await runs.end(0)
    for row in range(1, 5):
        await runs.end(row, "reject")
    assert runs.executor.error is None  # 4 rejections for one batch are allowed
    await runs.end(5, "reject")
    with pytest.raises(RolloutError, match=r"5 episodes were rejected for one batch of 2, 1 are .*max_rejected"):
        await runs.take()


async def test_each_batch_has_its_own_allowance_of_rejections():
    runs = Set(batch=1, eta=5, max_rejected_batches=1)
    runs.feed(*range(6))
    for row in range(0, 6, 2):
        await runs.end(row, "reject")
        await runs.end(row + 1)
        assert await runs.take(1) == [row + 1]


async def test_a_pacer_never_keeps_back_what_is_waited_for():
    runs = Set(batch=2, eta=3, pacer=Pacer(batch_size=2, max_staleness=3))
    runs.feed(*range(8))
    await settle()
    assert list(runs.workflow.running) == [0, 1]  # the gate alone would start 8
    taking = asyncio.ensure_future(runs.take(6))
    await settle()
    assert list(runs.workflow.running) == [0, 1, 2, 3, 4, 5]
    for row in range(6):
        await runs.end(row)
    assert await taking == [0, 1, 2, 3, 4, 5]


async def test_a_pacer_starts_the_next_batch_as_episodes_end():
    runs = Set(batch=2, eta=3, pacer=Pacer(batch_size=2, max_staleness=3))
    runs.feed(*range(8))
    await runs.end(0)
    assert list(runs.workflow.running) == [1, 2]
    await runs.end(1)
    await runs.end(2)
    assert list(runs.workflow.running) == [3]  # the batch in training and the next


class Holding(Pacer):
    """Holds new weights for up to so many seconds."""

    seconds = 100.0

    def hold_s(self, now):
        return self.seconds


async def holding_weights(*rows, seconds=Holding.seconds):
    """A run in its first step, with the next batch running, and a task that holds the weights of the next version."""
    pacer = Holding(batch_size=2, max_staleness=1)
    pacer.seconds = seconds
    runs = Set(batch=2, eta=1, pacer=pacer)
    runs.feed(*rows)
    await runs.end(0)
    await runs.end(1)
    assert await runs.take() == [0, 1]
    holding = asyncio.ensure_future(runs.executor.hold_weights(1))
    await settle()
    return runs, holding


async def test_new_weights_wait_for_the_running_batch_and_nothing_else_starts():
    runs, holding = await holding_weights(*range(8))
    await runs.end(2)
    assert not holding.done()
    assert list(runs.workflow.running) == [3]
    await runs.end(3)
    assert holding.done()
    assert await runs.take() == [2, 3]


async def test_new_weights_wait_for_a_batch_that_the_trainer_takes_meanwhile_and_for_no_other():
    runs, holding = await holding_weights(*range(8))
    taking = asyncio.ensure_future(runs.take())
    await runs.end(2)
    await runs.end(3)
    assert await taking == [2, 3]
    assert holding.done()
    async with asyncio.timeout(1):
        await runs.executor.hold_weights(1)  # too late: the batch is in training


async def test_new_weights_do_not_wait_for_an_episode_that_hangs():
    _, holding = await holding_weights(*range(8), seconds=0.01)
    async with asyncio.timeout(5):
        await holding


async def test_new_weights_do_not_wait_for_episodes_that_cannot_start_before():
    runs, holding = await holding_weights(*range(4))
    await runs.end(2, "reject")  # and no prompt is left to replace it
    assert holding.done()


@pytest.mark.parametrize("action", ["discard", "pause", "close"])
async def test_new_weights_do_not_wait_for_episodes_that_are_cancelled_or_paused(action):
    runs, holding = await holding_weights(*range(8))
    result = getattr(runs.executor, action)()
    if result is not None:
        await result
    await settle()
    assert holding.done()


async def test_no_server_stops_the_run_at_once():
    class Unserved(RolloutWorkflow):
        async def arun_episode(self, engine, data):
            raise NoServerError("no server was ready within 300 s")

    runs = Set(max_failed=100)
    runs.executor.feed([Prompt({}, Unserved())])
    with pytest.raises(NoServerError):
        await runs.take()


async def test_what_is_not_a_list_of_trajectories_is_refused_by_name():
    class Wrong(RolloutWorkflow):
        async def arun_episode(self, engine, data):
            return {"input_ids": [1]}

    runs = Set(max_failed=0)
    runs.executor.feed([Prompt({}, Wrong())])
    with pytest.raises(RolloutError, match=r"Wrong\.arun_episode returned"):
        await runs.take()


async def test_samples_of_one_prompt_share_a_group_and_prompts_do_not():
    class Two(RolloutWorkflow):
        async def arun_episode(self, engine, data):
            return [sample(0), sample(0)]

    runs = Set()
    runs.executor.feed([Prompt({}, Two()), Prompt({}, Two())])
    episodes = await runs.executor.take(2, feeding=False, update_pending=lambda: False)
    assert [[t.group for t in episode.trajectories] for episode in episodes] == [[0, 0], [1, 1]]


async def test_prompts_are_wanted_only_as_far_as_the_gate_allows():
    synchronous, asynchronous = Set(batch=4), Set(batch=4, eta=1)
    assert synchronous.executor.prompts_wanted() == 4  # (0 + 0 + 1)·4
    assert asynchronous.executor.prompts_wanted() == 12  # (1 + 0 + 1)·4, and the batch that version 1 allows
    asynchronous.feed(*range(12))
    assert asynchronous.executor.prompts_wanted() == 0


async def test_nothing_is_generated_for_steps_beyond_the_last():
    runs = Set(batch=2, eta=3, total_batches=1)
    assert runs.executor.prompts_wanted() == 2
    runs.feed(*range(8))
    await settle()
    assert list(runs.workflow.running) == [0, 1]


async def test_a_full_queue_of_finished_episodes_starts_no_more():
    runs = Set(batch=2, eta=5, concurrent=2, queue_size=3)
    runs.feed(*range(8))
    for row in (0, 1, 2):
        await runs.end(row)
    assert not runs.workflow.running
    assert await runs.take() == [0, 1]
    await settle()
    assert list(runs.workflow.running) == [3, 4]


@pytest.mark.parametrize("queue_size", [2, 3, 4, 5, 7])
async def test_a_queue_bounds_the_staleness_that_is_reached(queue_size):
    runs = Set(batch=2, eta=9, queue_size=queue_size)
    runs.feed(*range(40))
    oldest = 0
    for step in range(8):
        for row in range(2 * step, 2 * step + 2):
            await runs.end(row)
        async with asyncio.timeout(1):
            episodes = await runs.executor.take(2, feeding=False, update_pending=lambda: False)
        oldest = max(oldest, *(step - episode.version for episode in episodes))
        runs.executor.set_version(step + 1)
    assert oldest == 1 + (queue_size - 1) // 2  # as GRPOConfig checks


def test_a_queue_below_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"rollout.queue_size is 1, below a batch of 2"):
        Set(batch=2, queue_size=1)


async def test_a_paused_executor_starts_nothing_until_it_is_resumed():
    runs = Set()
    runs.executor.pause()
    runs.feed(0, 1)
    await settle()
    assert not runs.workflow.running
    with pytest.raises(RolloutError, match=r"call resume\(\)"):
        await runs.take()
    runs.executor.resume()
    await settle()
    assert list(runs.workflow.running) == [0, 1]


async def test_waiting_for_what_can_never_come_is_an_error():
    runs = Set()
    runs.feed(0, 1, 2, 3)
    await runs.end(0)
    await runs.end(1)
    assert await runs.take() == [0, 1]
    with pytest.raises(RolloutError, match="none may start: version 0, accepted 2"):
        await runs.take()
    runs.executor.set_version(1)
    await runs.end(2)
    await runs.end(3)
    assert await runs.take() == [2, 3]


async def test_the_state_holds_all_rows_that_no_batch_has_in_their_order():
    runs = Set(batch=2, eta=1, concurrent=4)
    runs.feed(*range(7))
    for row in (3, 1, 0):
        await runs.end(row)
    assert await runs.take() == [0, 1]
    state = runs.executor.state_dict()
    # 3 is finished, 2 is under way, 4 … 6 are waiting
    assert [row["row"] for row in state["rows"]] == [2, 3, 4, 5, 6]
    resumed = Set(batch=2, eta=1)
    rows = resumed.executor.load_state_dict(state, version=1)
    assert [row["row"] for row in rows] == [2, 3, 4, 5, 6]
    assert (resumed.executor.gate.accepted, resumed.executor.step) == (2, 1)


async def test_a_rollback_discards_all_episodes_and_continues_at_a_new_version():
    runs = Set(batch=2, eta=1, total_batches=3)
    runs.feed(0, 1, 2, 3)
    await runs.end(0)
    await runs.executor.discard()
    assert not runs.workflow.running
    # Version 4 is of step 1: versions 1 to 3 were published before. Two more steps end the training at version 6.
    rows = runs.executor.load_state_dict({"rows": [{"row": 7}], "next_number": 5}, version=4, total_batches=6)
    assert rows == [{"row": 7}]
    runs.feed(7, 8, 9, 10, 11, 12)
    for row in (7, 8):
        await runs.end(row)
    assert await runs.take() == [7, 8]
    runs.executor.set_version(5)
    await settle()
    assert sorted(runs.workflow.running) == [9, 10]


async def test_closing_cancels_what_is_under_way():
    runs = Set()
    runs.feed(0, 1)
    await settle()
    await runs.executor.close()
    assert not runs.workflow.running


class Counting(RolloutWorkflow):
    def __init__(self, failing=()):
        self.failing, self.running, self.most = set(failing), 0, 0

    async def arun_episode(self, engine, data):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001 * (5 - data["row"] % 5))
        self.running -= 1
        if data["row"] in self.failing:
            raise RuntimeError("judge broke")
        return [sample(0, reward=data["row"])]


async def test_evaluation_keeps_the_rows_order_and_the_bound_on_concurrency():
    workflow = Counting(failing=[3])
    prompts = [Prompt({"row": row}, workflow) for row in range(12)]
    results = await run_prompts(None, prompts, max_concurrent=4, max_failed=1)
    assert [[t.reward for t in group] for group in results] == [[row] if row != 3 else [] for row in range(12)]
    assert workflow.most == 4


async def test_evaluation_bears_failures_that_are_not_in_a_row():
    workflow = Counting(failing=range(0, 60, 10))
    prompts = [Prompt({"row": row}, workflow) for row in range(60)]
    results = await run_prompts(None, prompts, max_concurrent=1, max_failed=1)
    assert sum(not group for group in results) == 6


async def test_evaluation_with_too_many_failures_is_an_error():
    prompts = [Prompt({"row": row}, Counting(failing=[row])) for row in range(4)]
    with pytest.raises(RolloutError, match=r"2 episodes in a row failed.*judge broke"):
        await run_prompts(None, prompts, max_concurrent=None, max_failed=1)
