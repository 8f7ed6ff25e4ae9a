"""The reward pool: values, deadlines, crashes, and errors that name the sample."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from areal_trainer.reward.function import RewardError
from areal_trainer.reward.pool import RewardPool
from support import reward_functions

OBEDIENT = "support.reward_functions:obedient"


@pytest.fixture
def pools() -> Iterator[list[RewardPool]]:
    opened: list[RewardPool] = []
    yield opened
    for pool in opened:
        pool.close()


def opened(pools: list[RewardPool], *args: object, **kwargs: object) -> RewardPool:
    pools.append(RewardPool(*args, **kwargs))  # type: ignore[arg-type]
    return pools[-1]


async def score(pool: RewardPool, completion: str, task_id: str = "") -> float:
    return await pool.score("the prompt", completion, [1, 2], [3], answer="yes", task_id=task_id or completion)


async def outcomes(pool: RewardPool, completions: list[str]) -> list[object]:
    return list(await asyncio.gather(*(score(pool, text) for text in completions), return_exceptions=True))


@pytest.mark.parametrize("processes", [0, 2])
async def test_function_receives_the_sample_and_every_column(pools: list[RewardPool], processes: int) -> None:
    pool = opened(pools, "support.reward_functions:received", processes=processes)
    value = await pool.score("the prompt", "the completion", [1, 2], [3], answer="5", level=2, task_id="t")
    assert value == 1.0


@pytest.mark.parametrize("function", [OBEDIENT, "support.reward_functions:obedient_async"])
@pytest.mark.parametrize("processes", [0, 1])
async def test_each_caller_receives_its_own_reward(pools: list[RewardPool], function: str, processes: int) -> None:
    pool = opened(pools, function, processes=processes)
    assert await outcomes(pool, ["yes", "no", "yes", "yes", "no"]) == [1.0, 0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("hang", ["hang", "hang in C"])
async def test_hung_call_is_killed_and_the_others_are_scored(pools: list[RewardPool], hang: str) -> None:
    pool = opened(pools, OBEDIENT, timeout_s=1.0)
    first, hung, last = await outcomes(pool, ["yes", hang, "yes"])
    assert (first, last) == (1.0, 1.0)
    assert isinstance(hung, RewardError)
    assert hung.task_id == hang
    assert "reward.timeout = 1 s" in str(hung)
    assert await score(pool, "yes") == 1.0


@pytest.mark.parametrize(("order", "status"), [("exit", "exit status 3"), ("crash", "SIGSEGV")])
async def test_crash_of_a_process_fails_only_its_sample(pools: list[RewardPool], order: str, status: str) -> None:
    pool = opened(pools, OBEDIENT)
    dead, first, second = await outcomes(pool, [order, "yes", "no"])
    assert isinstance(dead, RewardError)
    assert status in str(dead)
    assert (first, second) == (1.0, 0.0)


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize(
    ("order", "reason"), [("raise", "no such operation"), ("nan", "not a finite number"), ("none", "returned None")]
)
async def test_error_of_the_function_names_the_sample(
    pools: list[RewardPool], processes: int, order: str, reason: str
) -> None:
    pool = opened(pools, OBEDIENT, processes=processes)
    with pytest.raises(RewardError, match=reason) as caught:
        await score(pool, order, task_id="train/17")
    assert "train/17" in str(caught.value)
    assert caught.value.completion == order


@pytest.mark.parametrize("processes", [0, 1])
async def test_slow_async_call_times_out_without_delaying_others(pools: list[RewardPool], processes: int) -> None:
    pool = opened(pools, reward_functions.obedient_async, processes=processes, timeout_s=0.5)
    await score(pool, "yes")
    began = time.monotonic()
    *good, late = await outcomes(pool, ["yes"] * 20 + ["sleep"])
    assert good == [1.0] * 20
    assert isinstance(late, RewardError)
    assert time.monotonic() - began < 5.0


async def test_async_call_that_blocks_its_process_is_killed(pools: list[RewardPool]) -> None:
    pool = opened(pools, reward_functions.obedient_async, timeout_s=0.6)
    first, hung, last = await outcomes(pool, ["yes", "hang", "no"])
    assert (first, last) == (1.0, 0.0)
    assert isinstance(hung, RewardError)
    assert hung.task_id == "hang"


async def test_slow_calls_are_distributed_over_the_processes(pools: list[RewardPool]) -> None:
    pool = opened(pools, reward_functions.slow, processes=2)
    numbers = {await score(pool, "x") for _ in range(2)} | set(await outcomes(pool, ["x"] * 8))
    assert numbers == {float(process.pid or 0) for process in pool.processes}


async def test_processes_do_not_load_torch(pools: list[RewardPool]) -> None:
    pool = opened(pools, "areal_trainer.reward.gsm8k:gsm8k_reward_fn")
    await pool.score("p", r"\boxed{2\sqrt{2}}", [], [], answer=r"\boxed{\sqrt{8}}")
    maps = psutil.Process(pool.processes[0].pid).memory_maps()
    assert not any("torch" in region.path for region in maps)


async def test_process_that_dies_while_idle_is_replaced(pools: list[RewardPool]) -> None:
    pool = opened(pools, OBEDIENT)
    assert await score(pool, "yes") == 1.0
    killed = psutil.Process(pool.processes[0].pid)
    killed.kill()
    killed.wait(5)
    assert await score(pool, "yes") == 1.0


async def test_close_kills_the_processes_and_cancels_pending_calls() -> None:
    pool = RewardPool(OBEDIENT, processes=1, timeout_s=60)
    await score(pool, "yes")
    process = psutil.Process(pool.processes[0].pid)
    waiting = asyncio.gather(score(pool, "hang"), score(pool, "yes"), return_exceptions=True)
    await asyncio.sleep(0.1)
    pool.close()
    assert all(isinstance(result, asyncio.CancelledError) for result in await waiting)
    assert not process.is_running()
    with pytest.raises(RuntimeError, match="closed"):
        await score(pool, "yes")


def test_function_defined_in_the_running_script_is_imported(tmp_path: Path) -> None:
    script = tmp_path / "train_script.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio
        from areal_trainer.reward.pool import RewardPool

        def my_reward(prompt, completions, prompt_ids, completion_ids, **kwargs):
            return len(completions)

        async def main():
            pool = RewardPool(my_reward)
            print(await pool.score("p", "four", [], []))
            pool.close()

        if __name__ == "__main__":
            asyncio.run(main())
        """)
    )
    finished = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout == "4.0\n"


def test_killed_trainer_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        textwrap.dedent(f"""
        import asyncio, sys
        sys.path.insert(0, {str(Path(reward_functions.__file__).parent.parent)!r})
        from areal_trainer.reward.pool import RewardPool

        async def main():
            pool = RewardPool({OBEDIENT!r}, timeout_s=600)
            await pool.score("p", "yes", [], [], answer="yes")
            print(pool.processes[0].pid, flush=True)
            await pool.score("p", "hang in C", [], [], answer="yes")

        asyncio.run(main())
        """)
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        worker = psutil.Process(int(trainer.stdout.readline()))
        time.sleep(0.3)
        trainer.kill()
    deadline = time.monotonic() + 5
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


async def test_missing_column_is_named(pools: list[RewardPool]) -> None:
    pool = opened(pools, OBEDIENT, processes=0)
    with pytest.raises(ValueError, match=r"requires answer.*columns are: solution"):
        await pool.score("p", "c", [], [], solution="5")


def test_reward_module_is_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_rewards.py").write_text("def one(**kwargs):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])

    async def main() -> float:
        pool = RewardPool("my_own_rewards:one")
        try:
            return await pool.score("p", "c", [], [])
        finally:
            pool.close()

    assert asyncio.run(main()) == 1.0


async def test_stalled_trainer_does_not_kill_completed_calls(pools: list[RewardPool]) -> None:
    pool = opened(pools, OBEDIENT, timeout_s=0.3)
    assert await score(pool, "yes") == 1.0
    process = pool.processes[0].pid
    calls = asyncio.gather(score(pool, "yes"), score(pool, "no"))
    await asyncio.sleep(0.01)
    time.sleep(1.5)  # stalls the event loop, not the process
    assert await calls == [1.0, 0.0]
    assert pool.processes[0].pid == process
