"""Throughput of the GSM8K reward in our pool and in ProcessPoolExecutor, which has no deadlines."""

from __future__ import annotations

import asyncio
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from areal_trainer.reward.gsm8k import gsm8k_reward_fn
from areal_trainer.reward.pool import RewardPool
from benchmarks.measure import Comparison, by_turns, rate

BATCH = 256
PROMPT = "p" * 400
IDS = list(range(200))
ADDRESS = "areal_trainer.reward.gsm8k:gsm8k_reward_fn"


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Rewards per second with one process on each side, for batches submitted at once."""
    batches = 2 if small else 40
    answers = [rf"so \boxed{{{number}}}" for number in range(BATCH)]
    with asyncio.Runner() as runner, ProcessPoolExecutor(1) as executor:
        pool = RewardPool(ADDRESS)

        async def pooled() -> None:
            for _ in range(batches):
                await asyncio.gather(*(pool.score(PROMPT, text, IDS, IDS, answer="#### 18") for text in answers))

        async def plain() -> None:
            loop = asyncio.get_running_loop()
            for _ in range(batches):
                calls = (partial(gsm8k_reward_fn, PROMPT, text, IDS, IDS, answer="#### 18") for text in answers)
                await asyncio.gather(*(loop.run_in_executor(executor, call) for call in calls))

        try:
            ours, baseline = by_turns(
                lambda: rate(batches * BATCH, lambda: runner.run(pooled())),
                lambda: rate(batches * BATCH, lambda: runner.run(plain())),
                rounds=rounds,
            )
        finally:
            pool.close()
    work = f"{batches} batches of {BATCH} GSM8K rewards, one process, each call with a deadline"
    return [Comparison("rewards", work, "rewards/s", ours, "ProcessPoolExecutor, no deadlines", baseline)]
