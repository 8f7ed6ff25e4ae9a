"""An AWorld agent with a calculator. It runs against any model that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, AgentMemoryConfig, HistoryWriteStrategy, ModelConfig
from aworld.core.agent.base import AgentFactory
from aworld.core.agent.swarm import Swarm
from aworld.core.task import Task
from aworld.core.tool.func_to_tool import be_tool
from aworld.memory.main import InMemoryMemoryStore, MemoryFactory
from aworld.models.llm import LLMModel
from aworld.models.model_response import ModelResponse
from aworld.models.openai_provider import OpenAIProvider
from aworld.runner import Runners
from aworld.runners.state_manager import InMemoryStateStorage
from loguru import logger as aworld_log

from examples.calculator.calculator import reward_of, value_of

SYSTEM_PROMPT = (
    "You solve mathematical problems step by step. Use the calculator where there is something to work out. "
    "End with the line: #### <number>"
)
CLEANUP_DELAY_S = 60.0  # AWorld still writes records shortly after an episode


@be_tool(tool_name="calculator", desc="The value of an arithmetic expression.")
def calculate(expression: str) -> str:
    """The calculator tool. AWorld copies this source, so it calls by name only."""
    return value_of(expression)


class Solver:
    """Solves a word problem; the reward is 1 for the correct answer.

    ``tools`` are AWorld's names of the agent's tools. The agent stops after ``max_turns`` answers of the model, and if
    the conversation reaches ``gconfig.max_tokens``; its last answer counts.
    """

    def __init__(
        self, *, system_prompt: str = SYSTEM_PROMPT, tools: Sequence[str] = ("calculator",), max_turns: int = 6
    ) -> None:
        self._system_prompt = system_prompt
        self._tools = list(tools)
        self._max_turns = max_turns
        aworld_log.disable("aworld")  # it logs pages per episode; failures are raised
        self._memory = SessionMemory()
        MemoryFactory.init(self._memory)

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        """The reward of one attempt at the row ``data``."""
        model = Model(
            model_name="default",
            base_url=f"{extra_kwargs['base_url']}/v1",
            api_key=extra_kwargs["api_key"],
            http_client=extra_kwargs["http_client"],
            max_turns=self._max_turns,
        )
        agent = QuietAgent(model, system_prompt=self._system_prompt, tools=self._tools)
        session_id = uuid.uuid4().hex
        task = Task(
            input=data["messages"][-1]["content"],
            swarm=Swarm(agent, max_steps=self._max_turns + 1),
            session_id=session_id,
            endless_threshold=self._max_turns + 1,  # consecutive calls of one agent are not an endless loop here
        )
        try:
            done = (await Runners.run_task(task))[task.id]
        finally:
            AgentFactory.unregister(agent.id())
            asyncio.get_running_loop().call_later(CLEANUP_DELAY_S, self._forget, session_id)
        if model.failure is not None:
            raise model.failure
        if model.last is None or not done.success:
            raise RuntimeError(f"the agent failed: {done.msg or done.status}")
        return reward_of(model.last.content, data["answer"])

    def _forget(self, session_id: str) -> None:
        """Delete the records of a session, which AWorld would keep for ever."""
        self._memory.forget(session_id)
        states = InMemoryStateStorage.instance()  # it has no method for this
        if session_id in states._session_nodes:
            states._ordered_session_ids.remove(session_id)
            for node in states._session_nodes.pop(session_id):
                states._nodes.pop(node.node_id, None)


class Model(OpenAIProvider):
    """AWorld's client of OpenAI's protocol, which remembers the last answer and why a call failed."""

    def __init__(self, *, max_turns: int, **options: Any) -> None:
        super().__init__(sync_enabled=False, async_enabled=True, max_retries=0, **options)
        self.is_http_provider = False  # AWorld reads it, and sets it for synchronous clients only
        self._turns_left = max_turns
        self.last: ModelResponse | None = None
        self.failure: Exception | None = None  # AWorld converts a provider's exception to text

    async def acompletion(self, messages: list[dict[str, Any]], *arguments: Any, **options: Any) -> ModelResponse:
        """The model's answer, the last one without its tool calls."""
        try:
            response = await super().acompletion(messages, *arguments, **options)
        except Exception as error:
            code = getattr(error.__context__, "code", None)  # AWorld keeps no more than the text of OpenAI's error
            if self.last is None or code != "context_length_exceeded":
                self.failure = error
                raise
            response, self._turns_left = self.last, 0
        self.last = response
        self._turns_left -= 1
        if self._turns_left <= 0:
            response.tool_calls = None
            response.message["tool_calls"] = None
        if not response.content and not response.tool_calls:
            response.content = response.message["content"] = " "  # AWorld treats an empty answer as a failure
        return response


class QuietAgent(Agent):
    """An AWorld agent for one session that writes nothing to disk."""

    def __init__(self, model: Model, *, system_prompt: str, tools: Sequence[str]) -> None:
        settings = ModelConfig(llm_provider="openai", llm_model_name=model.model_name, llm_api_key="none")
        # In the default mode AWorld keeps a record of each message without a session.
        memory = AgentMemoryConfig(history_write_strategy=HistoryWriteStrategy.DIRECT)
        super().__init__(
            name="solver",
            conf=AgentConfig(llm_config=settings, memory_config=memory),
            system_prompt=system_prompt,
            tool_names=list(tools),
            llm_max_attempts=1,  # AWorld would wait 10 s before another one
        )
        self._model = LLMModel(custom_provider=model)

    @property
    def llm(self) -> LLMModel:
        """The session's model."""
        return self._model

    async def _save_failed_request_context(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: AWorld would write each failed request to the working directory."""

    def _log_messages(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: AWorld would download a tokenizer on each call to count tokens."""


class SessionMemory(InMemoryMemoryStore):
    """AWorld's memory, limited to running sessions."""

    def forget(self, session_id: str) -> None:
        """Delete a session."""
        self.memory_items = [item for item in self.memory_items if item.session_id != session_id]
