"""An AWorld agent that generates through the trainer's engine. Only this module imports AWorld."""

from __future__ import annotations

import ast
import asyncio
import operator
import uuid
from collections.abc import Sequence
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.config.conf import AgentConfig, AgentMemoryConfig, HistoryWriteStrategy, ModelConfig
from aworld.core.agent.base import AgentFactory
from aworld.core.agent.swarm import Swarm
from aworld.core.llm_provider import LLMProviderBase
from aworld.core.model_output_parser.default_parsers import ToolParser
from aworld.core.task import Task
from aworld.core.tool.func_to_tool import be_tool
from aworld.memory.main import InMemoryMemoryStore, MemoryFactory
from aworld.models.llm import LLMModel
from aworld.models.model_response import ModelResponse
from aworld.runner import Runners
from aworld.runners.state_manager import InMemoryStateStorage
from loguru import logger as aworld_log

from areal_trainer.rollout.conversation import Conversation, ConversationFullError

OPERATIONS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LONGEST_EXPRESSION = 200
CLEANUP_DELAY_S = 60.0  # AWorld still writes records shortly after an episode


@be_tool(tool_name="calculator", desc="The value of an arithmetic expression.")
def calculate(expression: str) -> str:
    """The calculator tool; the agent receives its errors. AWorld copies this source, so it calls by name only."""
    return value_of(expression)


def value_of(expression: str) -> str:
    """Evaluate an expression of numbers, + - * / and parentheses. Raises ``ValueError`` for anything else."""
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"the expression has {len(expression)} characters; at most {LONGEST_EXPRESSION} are allowed")
    try:
        return f"{_evaluate(ast.parse(expression.strip(), mode='eval').body):.12g}"
    except (SyntaxError, KeyError, ZeroDivisionError, OverflowError, MemoryError) as error:
        raise ValueError(f"cannot evaluate {expression!r}: {error!r}") from error


def _evaluate(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.BinOp):
        return float(OPERATIONS[type(node.op)](_evaluate(node.left), _evaluate(node.right)))
    if isinstance(node, ast.UnaryOp):
        return float(OPERATIONS[type(node.op)](_evaluate(node.operand)))
    raise KeyError(type(node).__name__)


class EngineProvider(LLMProviderBase):
    """AWorld's model interface backed by a ``Conversation``. The trainer controls sampling."""

    def __init__(self, conversation: Conversation, *, max_turns: int) -> None:
        super().__init__(model_name="policy", sync_enabled=False, async_enabled=False)
        self._conversation = conversation
        self._turns_left = max_turns
        self.failure: Exception | None = None  # AWorld converts a provider's exception to text

    async def acompletion(self, messages: list[dict[str, Any]], **options: Any) -> ModelResponse:
        """The model's response with its tool calls, parsed in the Qwen and Hermes format.

        Tool calls in the last allowed response are not parsed.
        """
        self._turns_left -= 1
        try:
            turn = await self._conversation.reply(messages, tools=options.get("tools"))
        except ConversationFullError as failure:
            if self._conversation.last is None:
                self.failure = failure
                raise
            turn, self._turns_left = self._conversation.last, 0
        except Exception as failure:
            self.failure = failure
            raise
        content, calls = turn.text, []
        if self._turns_left > 0:
            content, calls = await ToolParser().extract_tool_calls(turn.text)
        response = turn.response
        usage = {"prompt_tokens": response.input_len, "completion_tokens": response.output_len}
        content = content.strip() or " "  # AWorld treats an empty response as a failure
        return ModelResponse(
            id=uuid.uuid4().hex,
            model=self.model_name,
            content=content,
            tool_calls=calls or None,
            usage={**usage, "total_tokens": sum(usage.values())},
            message={"role": "assistant", "content": content, "tool_calls": [call.to_dict() for call in calls] or None},
        )

    def completion(self, *arguments: Any, **options: Any) -> ModelResponse:
        """Not supported: episodes run concurrently on an event loop, which no call may block."""
        raise NotImplementedError("the trainer's model is asynchronous; call acompletion")

    def postprocess_response(self, response: Any) -> ModelResponse:
        """The response already has AWorld's type."""
        return response

    def _init_provider(self) -> None:
        """No client is needed."""


class TrainedAgent(Agent):
    """An AWorld agent for one episode, using the trainer's model."""

    def __init__(self, *, provider: EngineProvider, system_prompt: str, tools: Sequence[str]) -> None:
        settings = ModelConfig(llm_provider="openai", llm_model_name=provider.model_name, llm_api_key="none")
        super().__init__(
            name="solver",
            # In the default mode AWorld keeps a record of each message without a session.
            conf=AgentConfig(
                llm_config=settings, memory_config=AgentMemoryConfig(history_write_strategy=HistoryWriteStrategy.DIRECT)
            ),
            system_prompt=system_prompt,
            tool_names=list(tools),
            llm_max_attempts=1,  # the engine retries itself, and AWorld would wait 10 s
        )
        self._model = LLMModel(custom_provider=provider)

    @property
    def llm(self) -> LLMModel:
        """The trainer's model instead of a configured service."""
        return self._model

    async def _save_failed_request_context(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: AWorld would write each failed request to the working directory."""

    def _log_messages(self, *arguments: Any, **options: Any) -> None:
        """Does nothing: AWorld would download a tokenizer on each call to count tokens."""


class EpisodeMemory(InMemoryMemoryStore):
    """AWorld's memory, limited to running episodes."""

    def forget(self, session_id: str) -> None:
        """Delete an episode."""
        self.memory_items = [item for item in self.memory_items if item.session_id != session_id]


def forget_states(session_id: str) -> None:
    """Delete an episode from AWorld's run-state storage, which has no API for this."""
    states = InMemoryStateStorage.instance()
    if session_id in states._session_nodes:
        states._ordered_session_ids.remove(session_id)
        for node in states._session_nodes.pop(session_id):
            states._nodes.pop(node.node_id, None)


class AgentRunner:
    """Runs episodes of AWorld agents in this process and deletes their records, which AWorld would keep for ever."""

    def __init__(self) -> None:
        aworld_log.disable("aworld")  # it logs pages per episode; failures are raised
        self._memory = EpisodeMemory()
        MemoryFactory.init(self._memory)

    async def solve(
        self, task: str, conversation: Conversation, *, system_prompt: str, tools: Sequence[str], max_turns: int
    ) -> str:
        """The agent's final response to ``task``, after at most ``max_turns`` model responses."""
        provider = EngineProvider(conversation, max_turns=max_turns)
        agent = TrainedAgent(provider=provider, system_prompt=system_prompt, tools=tools)
        session_id = uuid.uuid4().hex
        work = Task(
            input=task,
            swarm=Swarm(agent, max_steps=max_turns + 1),
            session_id=session_id,
            endless_threshold=max_turns + 1,  # consecutive calls of one agent are not an endless loop here
        )
        try:
            done = (await Runners.run_task(work))[work.id]
        finally:
            AgentFactory.unregister(agent.id())
            asyncio.get_running_loop().call_later(CLEANUP_DELAY_S, self._forget, session_id)
        if provider.failure is not None:
            raise provider.failure
        if conversation.last is None:
            raise RuntimeError(f"the agent ended without calling the model: {done.msg or done.status}")
        if not done.success:
            raise RuntimeError(f"the agent failed: {done.msg or done.status}")
        return conversation.last.text

    def _forget(self, session_id: str) -> None:
        self._memory.forget(session_id)
        forget_states(session_id)
