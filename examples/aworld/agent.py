"""An AWorld agent whose calls of the model go through the trainer's engine. All that imports AWorld stands here."""

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
FORGOTTEN_AFTER_S = 60.0  # AWorld goes on with its records for a moment after an episode


@be_tool(tool_name="calculator", desc="The value of an arithmetic expression.")
def calculate(expression: str) -> str:
    """An agent's tool; what it raises, the agent is told. AWorld copies its source, so it calls by name alone."""
    return value_of(expression)


def value_of(expression: str) -> str:
    """The value of an expression of numbers, + - * / and brackets. Raises ``ValueError`` for anything else."""
    if len(expression) > LONGEST_EXPRESSION:
        raise ValueError(f"an expression may have {LONGEST_EXPRESSION} characters, this has {len(expression)}")
    try:
        return f"{_evaluated(ast.parse(expression.strip(), mode='eval').body):.12g}"
    except (SyntaxError, KeyError, ZeroDivisionError, OverflowError, MemoryError) as error:
        raise ValueError(f"cannot work out {expression!r}: {error!r}") from error


def _evaluated(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.BinOp):
        return float(OPERATIONS[type(node.op)](_evaluated(node.left), _evaluated(node.right)))
    if isinstance(node, ast.UnaryOp):
        return float(OPERATIONS[type(node.op)](_evaluated(node.operand)))
    raise KeyError(type(node).__name__)


class EngineProvider(LLMProviderBase):
    """AWorld's interface of a model, answered by a conversation of the trainer's. Sampling is the trainer's matter."""

    def __init__(self, conversation: Conversation, *, max_turns: int) -> None:
        super().__init__(model_name="policy", sync_enabled=False, async_enabled=False)
        self._conversation = conversation
        self._turns_left = max_turns
        self.failure: Exception | None = None  # AWorld turns what a provider raises into a text

    async def acompletion(self, messages: list[dict[str, Any]], **options: Any) -> ModelResponse:
        """The model's answer, with the calls of tools that it holds in the manner of Qwen and Hermes.

        The last answer that an agent may have calls nothing: it is taken as it is.
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
        content = content.strip() or " "  # AWorld takes an answer without text for a failure
        return ModelResponse(
            id=uuid.uuid4().hex,
            model=self.model_name,
            content=content,
            tool_calls=calls or None,
            usage={**usage, "total_tokens": sum(usage.values())},
            message={"role": "assistant", "content": content, "tool_calls": [call.to_dict() for call in calls] or None},
        )

    def completion(self, *arguments: Any, **options: Any) -> ModelResponse:
        """Episodes run side by side on an event loop, which no call may block."""
        raise NotImplementedError("the trainer's model answers asynchronously: call acompletion")

    def postprocess_response(self, response: Any) -> ModelResponse:
        """The answer is one of AWorld's already."""
        return response

    def _init_provider(self) -> None:
        """There is no client: the engine is the trainer's own."""


class TrainedAgent(Agent):
    """An AWorld agent of one episode, with the trainer's model."""

    def __init__(self, *, provider: EngineProvider, system_prompt: str, tools: Sequence[str]) -> None:
        settings = ModelConfig(llm_provider="openai", llm_model_name=provider.model_name, llm_api_key="none")
        super().__init__(
            name="solver",
            # Through messages, AWorld would leave a record of each in no episode's name.
            conf=AgentConfig(
                llm_config=settings, memory_config=AgentMemoryConfig(history_write_strategy=HistoryWriteStrategy.DIRECT)
            ),
            system_prompt=system_prompt,
            tool_names=list(tools),
            llm_max_attempts=1,  # the engine tries again by itself, and AWorld waits 10 s before it does
        )
        self._model = LLMModel(custom_provider=provider)

    @property
    def llm(self) -> LLMModel:
        """The trainer's model in the place of a configured service."""
        return self._model

    async def _save_failed_request_context(self, *arguments: Any, **options: Any) -> None:
        """Nothing: AWorld would write each failed request into the working directory."""

    def _log_messages(self, *arguments: Any, **options: Any) -> None:
        """Nothing: to tell their length AWorld loads a tokenizer from the web, once a call."""


class EpisodeMemory(InMemoryMemoryStore):
    """AWorld's memory, of running episodes alone."""

    def forget(self, session_id: str) -> None:
        """Drop an episode."""
        self.memory_items = [item for item in self.memory_items if item.session_id != session_id]


def forget_states(session_id: str) -> None:
    """Drop an episode from AWorld's record of what is running, which has no way to."""
    states = InMemoryStateStorage.instance()
    if session_id in states._session_nodes:
        states._ordered_session_ids.remove(session_id)
        for node in states._session_nodes.pop(session_id):
            states._nodes.pop(node.node_id, None)


class AgentRunner:
    """Runs episodes of AWorld agents in this process. AWorld would keep all of them; they are dropped soon after."""

    def __init__(self) -> None:
        aworld_log.disable("aworld")  # pages an episode; failures are raised
        self._memory = EpisodeMemory()
        MemoryFactory.init(self._memory)

    async def solve(
        self, task: str, conversation: Conversation, *, system_prompt: str, tools: Sequence[str], max_turns: int
    ) -> str:
        """An agent's last words on ``task``, after at most ``max_turns`` answers of the model."""
        provider = EngineProvider(conversation, max_turns=max_turns)
        agent = TrainedAgent(provider=provider, system_prompt=system_prompt, tools=tools)
        session_id = uuid.uuid4().hex
        work = Task(
            input=task,
            swarm=Swarm(agent, max_steps=max_turns + 1),
            session_id=session_id,
            endless_threshold=max_turns + 1,  # calls of one agent in a row are no endless loop here
        )
        try:
            done = (await Runners.run_task(work))[work.id]
        finally:
            AgentFactory.unregister(agent.id())
            asyncio.get_running_loop().call_later(FORGOTTEN_AFTER_S, self._forget, session_id)
        if provider.failure is not None:
            raise provider.failure
        if conversation.last is None:
            raise RuntimeError(f"the agent ended without a question to the model: {done.msg or done.status}")
        if not done.success:
            raise RuntimeError(f"the agent failed: {done.msg or done.status}")
        return conversation.last.text

    def _forget(self, session_id: str) -> None:
        self._memory.forget(session_id)
        forget_states(session_id)
