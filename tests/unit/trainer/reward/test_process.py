"""One reward process: start, results, restart."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from areal_trainer.reward.function import FunctionReference, RewardError
from areal_trainer.reward.process import Call, WorkerProcess


def call(number: int, completion: str) -> Call:
    arguments: dict[str, Any] = {"prompt": "p", "completions": completion, "prompt_ids": [], "completion_ids": []}
    return Call(number, {**arguments, "answer": "yes"}, asyncio.get_running_loop().create_future())


async def test_process_returns_results_in_order_and_restarts_after_a_crash() -> None:
    process = WorkerProcess(FunctionReference("support.reward_functions", "obedient"), timeout_s=30.0)
    try:
        assert await process.connect() is None
        calls = [call(0, "yes"), call(1, "exit"), call(2, "no")]
        retries, _ = await process.score(calls)
        assert calls[0].result.result() == 1.0
        with pytest.raises(RewardError, match="exit status 3"):
            calls[1].result.result()
        assert retries == [calls[2]]
        assert not process.alive
        assert await process.connect() is None
        assert await process.score(retries) == ([], pytest.approx(0.0, abs=1.0))
        assert calls[2].result.result() == 0.0
    finally:
        process.kill()


async def test_import_error_is_returned() -> None:
    process = WorkerProcess(FunctionReference("support.reward_functions", "missing"), timeout_s=30.0)
    try:
        assert "AttributeError" in (await process.connect() or "")
    finally:
        process.kill()
