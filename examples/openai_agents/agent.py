"""An agent of the OpenAI Agents SDK with a calculator. It runs against any model that speaks OpenAI's protocol."""

from __future__ import annotations

from typing import Any

from agents import Agent, MaxTurnsExceeded, ModelBehaviorError, OpenAIProvider, RunConfig, Runner, function_tool
from openai import AsyncOpenAI

from examples.calculator.calculator import reward_of, value_of


@function_tool
def calculate(expression: str) -> str:
    """The value of an arithmetic expression."""
    return value_of(expression)


class Solver:
    """Solves a word problem with the calculator; the reward is 1 for the correct answer."""

    def __init__(self, *, max_turns: int = 3) -> None:
        self._agent = Agent(name="solver", model="default", tools=[calculate])
        self._max_turns = max_turns

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        """The reward of one attempt at the row ``data``."""
        client = AsyncOpenAI(
            base_url=f"{extra_kwargs['base_url']}/v1",
            api_key=extra_kwargs["api_key"],
            http_client=extra_kwargs["http_client"],
        )
        config = RunConfig(model_provider=OpenAIProvider(openai_client=client), tracing_disabled=True)
        question = data["messages"][-1]["content"]
        try:
            result = await Runner.run(self._agent, question, max_turns=self._max_turns, run_config=config)
        except (MaxTurnsExceeded, ModelBehaviorError):  # the model's fault, which is trained
            return 0.0
        return reward_of(str(result.final_output), data["answer"])
