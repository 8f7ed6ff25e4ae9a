"""An agent that lets the model write Python and a sandbox run it. In Kubernetes it is a pod of ``spec.agents``.

    python3 -m examples.python_tool.agent

It asks the gateway for tasks, and sets the reward: 1 if what the model's code prints is the row's answer. The
environment has the gateway's address and key (``AREAL_GATEWAY_URL``, ``OPENAI_API_KEY``) and the tool's address
(``AREAL_TOOL_PYTHON_URL``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from typing import Any

import httpx

CONCURRENT_SESSIONS = 32
RETRY_S = 2.0
BLOCK = re.compile(r"```(?:python)?\n(.*?)```", re.DOTALL)
EXPRESSION = re.compile(r"([-+*/() \d]+?)\s*=")
ANSWER = re.compile(r"#### ?(-?\d+)")
logger = logging.getLogger(__name__)


def code_of(text: str) -> str | None:
    """The Python in a completion: a fenced block, or else the last calculation (``4 * 3 = …``), which is printed."""
    if blocks := BLOCK.findall(text):
        return str(blocks[-1])
    expressions = [one.strip() for one in EXPRESSION.findall(text) if one.strip()]
    return f"print({expressions[-1]})" if expressions else None


async def solve(client: httpx.AsyncClient, task: dict[str, Any], *, gateway: str, tool: str) -> float:
    """One session: the model writes code, the tool runs it, and the output is compared with the answer."""
    headers = {"Authorization": f"Bearer {task['api_key']}"}
    body = {"model": "default", "messages": task["data"]["messages"]}
    response = await client.post(f"{gateway}/v1/chat/completions", json=body, headers=headers)
    response.raise_for_status()
    code = code_of(response.json()["choices"][0]["message"]["content"] or "")
    reward = 0.0
    if code is not None:
        ran = await client.post(f"{tool}/run", json={"code": code, "timeout_seconds": 5})
        ran.raise_for_status()
        expected = ANSWER.search(task["data"]["answer"])
        reward = float(expected is not None and ran.json()["stdout"].strip() == expected[1])
    (await client.post(f"{gateway}/rl/set_reward", json={"reward": reward}, headers=headers)).raise_for_status()
    (await client.post(f"{gateway}/rl/end_session", headers=headers)).raise_for_status()
    return reward


async def work(client: httpx.AsyncClient, *, gateway: str, key: str, tool: str) -> None:
    """Ask for tasks and work on them, for ever. A failed session is left to expire; its task is handed out again."""
    while True:
        try:
            response = await client.post(
                f"{gateway}/rl/next_task", json={"timeout_seconds": 60}, headers={"Authorization": f"Bearer {key}"}
            )
            if response.status_code == 204:  # the trainer wants no session now
                continue
            response.raise_for_status()
            await solve(client, response.json(), gateway=gateway, tool=tool)
        except httpx.HTTPError as error:
            logger.warning("%s: %s", type(error).__name__, error)
            await asyncio.sleep(RETRY_S)


async def main() -> None:
    """Work on several sessions at a time."""
    gateway, key, tool = (os.environ[name] for name in ("AREAL_GATEWAY_URL", "OPENAI_API_KEY", "AREAL_TOOL_PYTHON_URL"))
    async with httpx.AsyncClient(timeout=120.0, trust_env=False) as client, asyncio.TaskGroup() as workers:
        for _ in range(CONCURRENT_SESSIONS):
            workers.create_task(work(client, gateway=gateway, key=key, tool=tool))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(main())
