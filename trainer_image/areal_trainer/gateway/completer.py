"""Completes conversations: from messages to tokens, to the engine, and back to a message."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol, Unpack

import msgspec

from areal_api.agent_config import AgentConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.gateway.channel import Options, Sample
from areal_trainer.gateway.constraints import Constraint, Policy, forced_calls
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.messages import Message, parse_arguments
from areal_trainer.gateway.preprocessing import Preprocessing
from areal_trainer.gateway.sessions import Session, Sessions

MAX_CHOICES = 64


class Engine(Protocol):
    """What generates: the trainer, on the other side of the channel."""

    async def generate(self, input_ids: list[int], **options: Unpack[Options]) -> list[Sample]:
        """Completions of a prompt. Raises ``GatewayError``."""
        ...

    async def parse(self, path: str, body: dict[str, Any]) -> Any:
        """The answer of a server's parser. Raises ``GatewayError``."""
        ...


class Codec(Protocol):
    """The part of ``areal_trainer.data.tokenizer.Codec`` that is used."""

    def decode(self, completions: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each of ``completions``."""
        ...


@dataclass(frozen=True)
class Request:
    """A call to the model, in every protocol. ``messages`` are normalized."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    parse_tools: bool = True  # False leaves tool calls in the content
    n: int = 1
    max_tokens: int | None = None
    id_prefix: str = "chatcmpl"
    stop: list[str] = field(default_factory=list)
    constraint: Constraint | None = None
    top_logprobs: int = 0
    preprocessed: bool = False  # messages were changed by the completer's ``preprocess``

    @property
    def looks_for_calls(self) -> bool:
        """Whether the parser of tool calls reads the answer."""
        return bool(self.tools) and self.parse_tools and self.constraint is None


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Choice:
    """An answer of the model."""

    sample: Sample
    content: str
    reasoning: str
    tool_calls: list[ToolCall]
    stop_text: str | None  # the stop text that ended it

    @property
    def finish_reason(self) -> str:
        """OpenAI's name for why the answer ended."""
        if self.sample.stop_reason == "length":
            return "length"
        return "tool_calls" if self.tool_calls else "stop"

    @property
    def message(self) -> Message:
        """The answer as a normalized message, as it stands in later histories."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": parse_arguments(call.arguments)},
                }
                for call in self.tool_calls
            ]
        return message


@dataclass(frozen=True)
class Completed:
    """The answers to a call."""

    id: str
    prompt_tokens: int
    choices: list[Choice]

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(choice.sample.tokens) for choice in self.choices)


class Completer:
    """Answers the calls of all sessions."""

    def __init__(
        self,
        engine: Engine,
        sessions: Sessions,
        codec: Codec,
        config: AgentConfig,
        *,
        gconfig: GenerationHyperparameters,
        eval_gconfig: GenerationHyperparameters,
    ) -> None:
        """Both sampling sections include the tokenizer's stop tokens. Raises ``ValueError`` for a bad ``config``."""
        self.preprocess = Preprocessing(config.message_preprocessors)
        self._engine = engine
        self._sessions = sessions
        self._codec = codec
        self._config = config
        self._gconfigs = {False: gconfig, True: eval_gconfig}

    def gconfig(self, session: Session) -> GenerationHyperparameters:
        """How the session's completions are sampled."""
        return self._gconfigs[session.evaluation]

    def constraint_policy(self, session: Session) -> Policy:
        """What to do with requests for constrained decoding."""
        if self._config.constrained_decoding == "untrained":
            return "untrained"
        return "ignore" if self.ignores_unsupported(session) else "refuse"

    def ignores_unsupported(self, session: Session) -> bool:
        """Whether sampling parameters that cannot be honoured are ignored."""
        return self._config.unsupported_sampling == "ignore" or session.evaluation

    def count_tokens(self, session: Session, request: Request) -> int:
        """Number of tokens of the prompt for ``request``. Raises ``GatewayError``."""
        try:
            return len(session.tree.prompt(request.messages, request.tools).input_ids)
        except ValueError as error:
            raise GatewayError(400, str(error), field="messages") from error

    async def complete(self, session: Session, request: Request) -> Completed:
        """The answers to ``request``, recorded in the session. Raises ``GatewayError``.

        If the caller is cancelled, for example because the agent hung up, nothing is recorded.
        """
        gconfig = self.gconfig(session)
        if request.looks_for_calls and self._config.tool_call_parser is None:
            raise GatewayError(
                400, "tools need a parser for the model's tool calls; set rollout.agent.tool_call_parser", field="tools"
            )
        self._sessions.admit(session)
        session.running += 1
        try:
            prompt = session.tree.prompt(request.messages, request.tools)
            room = gconfig.max_tokens - len(prompt.input_ids)
            if room < 1:
                raise GatewayError(
                    400,
                    f"the messages have {len(prompt.input_ids)} tokens; gconfig.max_tokens allows {gconfig.max_tokens} "
                    "for messages and completion",
                    field="messages",
                    code="context_length_exceeded",
                )
            samples = await self._engine.generate(
                prompt.input_ids,
                n=request.n,
                max_new_tokens=min(request.max_tokens or gconfig.max_new_tokens, gconfig.max_new_tokens),
                stop=request.stop,
                evaluation=session.evaluation,
                session=session.id,
                json_schema=None if request.constraint is None else request.constraint.schema,
                top_logprobs=request.top_logprobs,
            )
            choices = list(await asyncio.gather(*(self._choice(sample, request, gconfig) for sample in samples)))
        except ValueError as error:  # the chat template rejects the messages
            raise GatewayError(400, str(error), field="messages") from error
        finally:
            session.running -= 1
        if session.state != "open":
            raise GatewayError(401, f"session {session.id} ended during the call")
        answers = [self.preprocess.answer(c.message) if request.preprocessed else c.message for c in choices]
        completion_id = f"{request.id_prefix}-{uuid.uuid4().hex}"
        session.tree.add(
            prompt,
            completion_id,
            [(c.sample, self._raw(c.sample, gconfig), message) for c, message in zip(choices, answers, strict=True)],
            trained=request.constraint is None or session.evaluation,
        )
        self._sessions.account(session)
        return Completed(completion_id, len(prompt.input_ids), choices)

    def token_texts(self, tokens: list[int]) -> list[str]:
        """The text of each token."""
        return self._codec.decode([[token] for token in tokens], skip_special_tokens=False)

    def _raw(self, sample: Sample, gconfig: GenerationHyperparameters) -> str:
        """The whole text with special tokens, but without the stop token."""
        tokens = sample.tokens
        if sample.stop_reason == "stop" and tokens and tokens[-1] in gconfig.stop_token_ids:
            tokens = tokens[:-1]
        return self._codec.decode([tokens], skip_special_tokens=False)[0]

    async def _choice(self, sample: Sample, request: Request, gconfig: GenerationHyperparameters) -> Choice:
        reasons = self._config.reasoning_parser is not None and request.constraint is None
        if request.looks_for_calls or reasons or not gconfig.skip_special_tokens:
            text = self._raw(sample, gconfig)  # tool calls and reasoning may be delimited by special tokens
        else:
            text = self._codec.decode([sample.tokens], skip_special_tokens=True)[0]
        stop_text = None
        if sample.stop_reason == "stop":
            text, stop_text = _before_stop(text, [*request.stop, *(gconfig.stop or ())])
        reasoning = ""
        calls: list[ToolCall] = []
        if reasons:
            reasoning, text = await self._reasoning(text)
        if request.looks_for_calls:
            text, calls = await self._calls(text, request)
        elif request.constraint is not None and request.constraint.calls:
            calls = [_tool_call({"name": name, "parameters": arguments}) for name, arguments in forced_calls(text)]
            text = "" if calls else text
        return Choice(sample, text, reasoning, calls, stop_text)

    async def _reasoning(self, text: str) -> tuple[str, str]:
        """The reasoning in a text, and the rest."""
        body = {"text": text, "reasoning_parser": self._config.reasoning_parser}
        parsed = await self._engine.parse("/separate_reasoning", body)
        return parsed.get("reasoning_text") or "", parsed.get("text") or ""

    async def _calls(self, text: str, request: Request) -> tuple[str, list[ToolCall]]:
        """The text without tool calls, and the calls."""
        body = {"text": text, "tools": request.tools, "tool_call_parser": self._config.tool_call_parser}
        parsed = await self._engine.parse("/parse_function_call", body)
        return parsed.get("normal_text") or "", [_tool_call(call) for call in parsed.get("calls") or ()]


def _before_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the first of ``stops``, and which one it is."""
    ends = [(position, stop) for stop in stops if (position := text.find(stop)) >= 0]
    if not ends:
        return text, None
    position, stop = min(ends)
    return text[:position], stop


def _tool_call(call: dict[str, Any]) -> ToolCall:
    arguments = call.get("parameters")
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments or {}).decode()
    return ToolCall(f"call_{uuid.uuid4().hex[:24]}", str(call.get("name") or ""), arguments or "{}")
