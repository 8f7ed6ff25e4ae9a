"""GSM8K with an AWorld agent that has a calculator: workflow and reward."""

from __future__ import annotations

import asyncio
import atexit
import functools
from typing import TYPE_CHECKING, Any

from areal_api.generation import GenerationHyperparameters
from areal_trainer.reward import gsm8k
from areal_trainer.rollout.conversation import Conversation
from areal_trainer.rollout.loop import LoopThread
from areal_trainer.rollout.workflow import GenerationEngine, RewardFn, RolloutWorkflow, task_id_of
from areal_trainer.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from examples.aworld.agent import AgentRunner

SYSTEM_PROMPT = (
    "You solve mathematical problems step by step. Use the calculator where there is something to work out. "
    "End with the line: #### <number>"
)


def gsm8k_reward_fn(
    prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], answer: str, **kwargs: Any
) -> float:
    """1 if the agent's final answer equals the reference, else 0. Modify it for a custom reward."""
    return gsm8k.gsm8k_reward_fn(prompt, completions, prompt_ids, completion_ids, answer, **kwargs)


class Gsm8kWorkflow(RolloutWorkflow):
    """An episode runs ``gconfig.n_samples`` agents on the problem of one row.

    ``tools`` are AWorld names of the available tools. An agent stops after ``max_turns`` model responses. A
    conversation that reaches ``gconfig.max_tokens`` is scored as it is.
    """

    def __init__(
        self,
        reward_fn: RewardFn,
        gconfig: GenerationHyperparameters,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str = SYSTEM_PROMPT,
        tools: tuple[str, ...] | list[str] = ("calculator",),
        max_turns: int = 6,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._reward_fn = reward_fn
        self._gconfig = gconfig
        self._tokenizer = tokenizer
        self._agent = {"system_prompt": system_prompt, "tools": tuple(tools), "max_turns": max_turns}
        self._chat_template_kwargs = chat_template_kwargs

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        """The trajectories of all agents: one per agent, or more if it starts another conversation."""
        agents = [self._run_agent(engine, data) for _ in range(self._gconfig.n_samples)]
        return [trajectory for trajectories in await asyncio.gather(*agents) for trajectory in trajectories]

    async def _run_agent(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory]:
        loop, runner = agents()
        conversation = Conversation(
            engine, self._gconfig, self._tokenizer, chat_template_kwargs=self._chat_template_kwargs
        )
        problem = data["messages"][-1]["content"]
        # Use a separate event loop: AWorld and its tools may block it, which must not stall the engine.
        answer = await asyncio.wrap_future(loop.start(runner.solve(problem, conversation, **self._agent)))
        last = conversation.last
        assert last is not None
        columns = {name: value for name, value in data.items() if name != "prompt"}
        reward = self._reward_fn(problem, answer, last.response.input_tokens, last.response.output_tokens, **columns)
        score = await reward if not isinstance(reward, float | int) else reward
        return conversation.trajectories(reward=float(score), prompt=problem, task_id=task_id_of(data))


@functools.cache
def agents() -> tuple[LoopThread, AgentRunner]:
    """The event loop and the AWorld runner shared by all agents of this process."""
    # Imported here because reward processes import this module too, and importing AWorld takes seconds.
    from examples.aworld.agent import AgentRunner

    loop = LoopThread("agents")
    atexit.register(loop.close)  # a loop still running at interpreter exit crashes Python
    return loop, AgentRunner()
