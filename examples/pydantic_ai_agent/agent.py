"""A pydantic-ai agent with a calculator. It runs against any model that speaks OpenAI's protocol."""

from __future__ import annotations

from typing import Any

from pydantic_ai import Agent, UnexpectedModelBehavior, UsageLimitExceeded, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from examples.calculator.calculator import reward_of, value_of

solver = Agent()


@solver.tool_plain
def calculate(expression: str) -> str:
    """The value of an arithmetic expression."""
    return value_of(expression)


class Solver:
    """Solves a word problem with the calculator; the reward is 1 for the correct answer."""

    def __init__(self, *, max_turns: int = 3) -> None:
        self._limits = UsageLimits(request_limit=max_turns)

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        """The reward of one attempt at the row ``data``."""
        provider = OpenAIProvider(
            base_url=f"{extra_kwargs['base_url']}/v1",
            api_key=extra_kwargs["api_key"],
            http_client=extra_kwargs["http_client"],
        )
        model = OpenAIChatModel("default", provider=provider)
        try:
            result = await solver.run(data["messages"][-1]["content"], model=model, usage_limits=self._limits)
        except (UnexpectedModelBehavior, UsageLimitExceeded):  # the model's fault, which is trained
            return 0.0
        return reward_of(result.output, data["answer"])
