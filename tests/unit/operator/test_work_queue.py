"""The work queue: each key with one worker at a time, in the order in which they are due."""

from __future__ import annotations

import asyncio
import time

import pytest

from areal_operator.work_queue import WorkQueue


async def test_a_key_has_one_worker_and_is_repeated_after_a_change() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 0.05) == "a"


async def test_an_earlier_time_wins_and_a_later_one_does_not_delay() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 60.0)
    queue.add("a", 0.0)
    queue.add("a", 60.0)
    assert await asyncio.wait_for(queue.get(), 0.05) == "a"
    assert queue.depth == 0


async def test_failures_wait_twice_as_long_each_time_until_one_succeeds() -> None:
    queue: WorkQueue[str] = WorkQueue()
    assert [queue.fail("a") for _ in range(4)] == [1.0, 2.0, 4.0, 8.0]
    assert max(queue.fail("a") for _ in range(20)) == 300.0
    queue.succeed("a")
    assert queue.fail("a") == 1.0


async def test_keys_come_in_the_order_in_which_they_became_due() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "c"):
        queue.add(key)
    assert [await queue.get() for _ in range(3)] == ["a", "b", "c"]


async def test_a_key_added_while_it_is_busy_becomes_due_after_done() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await queue.get()
    queue.add("a", 60.0)
    queue.add("a", 0.0)
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 0.05) == "a"
    assert queue.depth == 0


async def test_the_cost_per_key_does_not_grow_with_the_number_of_keys() -> None:
    async def seconds_per_key(count: int) -> float:
        queue: WorkQueue[int] = WorkQueue()
        for key in range(count):
            queue.add(key)
        started_at = time.perf_counter()
        for _ in range(count):
            queue.done(await queue.get())
        return (time.perf_counter() - started_at) / count

    small = min([await seconds_per_key(500) for _ in range(3)])
    assert await seconds_per_key(20_000) < 10 * small
