from __future__ import annotations

import asyncio
import os
import sys
import time
import venv
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from areal_api.agent_config import AgentConfig
from areal_trainer.rollout import agent_pool
from areal_trainer.rollout.agent_pool import AgentProcessError, PooledAgent

TESTS = Path(__file__).parents[3]
CONCURRENT, PLAIN = "support.pooled_agents:Concurrent", "support.pooled_agents:Plain"


def with_agent(path: str, work: Callable[[PooledAgent], Awaitable[Any]], kwargs: Any = None, **config: Any) -> Any:
    """The result of ``work`` with a started agent."""

    async def run() -> Any:
        settings = AgentConfig.model_validate({"mode": "subproc", "subproc_max_workers": 1, **config})
        agent = PooledAgent(path=path, kwargs=kwargs or {}, config=settings)
        try:
            await agent.start()
            return await work(agent)
        finally:
            agent.close()

    return asyncio.run(run())


async def outcome_of(agent: PooledAgent, outcome: str, **row: Any) -> Any:
    return await agent.run({"outcome": outcome, **row}, base_url="http://gateway", api_key="key", http_client=None)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_sessions_of_an_async_agent_run_at_once_in_one_process() -> None:
    async def work(agent: PooledAgent) -> Any:
        together = asyncio.gather(outcome_of(agent, "together"), outcome_of(agent, "together"))
        return await together, await outcome_of(agent, "by completion")

    assert with_agent(CONCURRENT, work, {"reward": 2.0}) == ([2.0, 2.0], {"completion": 0.25})


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("raises", "RuntimeError: the agent broke"),
        ("bad reward", "could not convert string to float"),
        ("exits", "ended with status 7"),
        ("grows", "MemoryError"),
        ("returns a flood", "more than 1048576 bytes"),
    ],
)
def test_an_agent_that_fails_fails_its_session_and_the_next_one_runs(outcome: str, words: str) -> None:
    async def work(agent: PooledAgent) -> Any:
        with pytest.raises(AgentProcessError, match=words) as caught:
            await outcome_of(agent, outcome)
        assert len(str(caught.value)) < 20_000
        return await outcome_of(agent, "number")

    assert with_agent(CONCURRENT, work, subproc_memory_gb=0.5) == 1.0


def test_a_cancelled_session_leaves_its_process_to_the_others() -> None:
    async def work(agent: PooledAgent) -> Any:
        before = await outcome_of(agent, "process")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(outcome_of(agent, "waits"), 0.2)
        return await outcome_of(agent, "process") == before

    assert with_agent(CONCURRENT, work)


def test_a_process_that_is_blocked_is_replaced_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_pool, "CANCEL_TIMEOUT_S", 0.1)

    async def work(agent: PooledAgent) -> None:
        blocked = int(await outcome_of(agent, "process"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(outcome_of(agent, "blocks"), 0.2)
        assert await outcome_of(agent, "process") != blocked
        await wait_until(lambda: not Path(f"/proc/{blocked}").exists())

    with_agent(CONCURRENT, work)


def test_a_plain_agent_has_its_session_in_its_environment_and_a_process_to_itself() -> None:
    async def work(agent: PooledAgent) -> Any:
        return await asyncio.gather(*(outcome_of(agent, "number") for _ in range(3)))

    assert with_agent(PLAIN, work) == [0.5] * 3


def test_a_plain_agent_that_is_cancelled_is_killed_with_what_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    async def work(agent: PooledAgent) -> Any:
        session = asyncio.create_task(outcome_of(agent, "starts a program", file=str(file)))
        await wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
        session.cancel()
        await asyncio.wait([session])
        return await outcome_of(agent, "number")

    assert with_agent(PLAIN, work) == 0.5
    state = Path(f"/proc/{file.read_text().strip()}/stat")
    deadline = time.monotonic() + 60
    while state.exists() and " Z " not in state.read_text():
        assert time.monotonic() < deadline, "the agent's program still runs"
        time.sleep(0.01)


def test_an_agent_runs_in_another_python_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (tmp_path / "elsewhere.py").write_text(
        f"import sys\nfrom pooled_agents import Plain\nassert sys.prefix == {str(tmp_path / 'venv')!r}, sys.prefix\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(TESTS / "support"))
    monkeypatch.chdir(tmp_path)
    ran = with_agent("elsewhere:Plain", lambda agent: outcome_of(agent, "number"), python="venv/bin/python")
    assert ran == 0.5


@pytest.mark.parametrize(
    ("path", "python", "words"),
    [
        ("support.no_such:Agent", None, "No module named 'support.no_such'"),
        ("support.pooled_agents:NoSuch", None, "has no attribute 'NoSuch'"),
        ("support.pooled_agents:BODY", sys.executable, "is no class with a method run"),
        (CONCURRENT, "no/such/python", "no executable file"),
        (CONCURRENT, "/bin/false", "ended with status 1"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused(
    path: str, python: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(ValueError, match=words):
        with_agent(path, lambda agent: outcome_of(agent, "number"), python=python)
