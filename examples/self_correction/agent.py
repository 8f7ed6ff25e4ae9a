"""An agent that may correct its first answer after feedback. It uses only HTTP."""

from __future__ import annotations

import re
from typing import Any

import httpx

FEEDBACK = "That is wrong. Solve it again."


class SelfCorrection:
    """Solves a problem of ``examples/tiny``; a correct second answer earns ``second_reward``."""

    def __init__(self, *, tries: int = 2, second_reward: float = 0.5) -> None:
        self._tries = tries
        self._second_reward = second_reward

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        """The reward: 1 for a correct first answer, less for a later one, 0 for none."""
        client: httpx.AsyncClient = extra_kwargs["http_client"]
        messages = list(data["messages"])
        for attempt in range(self._tries):
            response = await client.post(
                f"{extra_kwargs['base_url']}/v1/chat/completions",
                headers={"Authorization": f"Bearer {extra_kwargs['api_key']}"},
                json={"model": "default", "messages": messages},
            )
            response.raise_for_status()
            answer = response.json()["choices"][0]["message"]
            if final_number(answer["content"]) == final_number(data["answer"]):
                return self._second_reward**attempt
            messages += [answer, {"role": "user", "content": FEEDBACK}]
        return 0.0


def final_number(text: str) -> str | None:
    """The last number after ``####``."""
    numbers = re.findall(r"#### ?(-?\d+)", text)
    return numbers[-1] if numbers else None
