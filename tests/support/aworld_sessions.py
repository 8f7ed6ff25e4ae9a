"""Runs sessions of the agent of examples/aworld: ``python aworld_sessions.py URL``, with sessions as JSON on stdin.

It runs in the Python environment with AWorld and prints the outcomes and what AWorld still holds after them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx

from examples.aworld import agent


async def outcome_of(solver: agent.Solver, session: dict[str, Any], client: httpx.AsyncClient) -> float | str:
    row = {"messages": [{"role": "user", "content": session["problem"]}], "answer": "2 + 3 = 5\n#### 20"}
    try:
        return await solver.run(row, base_url=sys.argv[1], api_key=session["key"], http_client=client)
    except Exception as error:  # noqa: BLE001  the test inspects it
        return f"{type(error).__name__}: {error}"


async def main() -> None:
    sessions = json.load(sys.stdin)
    agent.CLEANUP_DELAY_S = 0.1
    solver = agent.Solver(max_turns=3)
    async with httpx.AsyncClient(timeout=60.0, trust_env=False) as client:
        outcomes = await asyncio.gather(*(outcome_of(solver, session, client) for session in sessions))
    memory = agent.MemoryFactory.instance().memory_store
    states = agent.InMemoryStateStorage.instance()
    async with asyncio.timeout(30.0):
        while memory.memory_items or states._nodes:
            await asyncio.sleep(0.05)
    print("OUTCOMES " + json.dumps(outcomes))


if __name__ == "__main__":
    asyncio.run(main())
