"""Anthropic's messages: requests, responses and events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from areal_trainer.gateway.chat import MAX_MESSAGES
from areal_trainer.gateway.completer import Choice, Completed, Completer, Request
from areal_trainer.gateway.constraints import ANY_OBJECT, anthropic_tool_choice, constraint_of, response_schema
from areal_trainer.gateway.http import server_sent_event
from areal_trainer.gateway.messages import Message, invalid, optional_text, text_of, tool_call, tool_result
from areal_trainer.gateway.preprocessing import Preprocessing
from areal_trainer.gateway.sampling import boolean, check_sampling, integer, stop_texts
from areal_trainer.gateway.sessions import Session
from areal_trainer.gateway.tools import Tool, function_tool, tools_of

_HONOURED = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "max_tokens", "stop_sequences", "stream"}
) | {"output_config"}
# They affect billing, placement or caching at Anthropic, and nothing here.
_WITHOUT_EFFECT = frozenset(
    {"metadata", "service_tier", "cache_control", "inference_geo", "speed", "context_management"}
)
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(frozen=True)
class MessagesCall:
    """A request and how to answer it."""

    request: Request
    stream: bool
    model: str

    def response(self, completed: Completed) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        [choice] = completed.choices
        usage = {"input_tokens": completed.prompt_tokens, "output_tokens": completed.completion_tokens}
        return self._message(completed) | {"content": _blocks(choice), "usage": usage, **_stop(choice)}

    def events(self, completed: Completed) -> Iterator[bytes]:
        """The events of a streamed response."""
        for event in self._events(completed):
            yield server_sent_event(event, name=event["type"])

    def _events(self, completed: Completed) -> Iterator[dict[str, Any]]:
        [choice] = completed.choices
        usage = {"input_tokens": completed.prompt_tokens, "output_tokens": 0}
        yield {"type": "message_start", "message": self._message(completed) | {"content": [], "usage": usage}}
        for index, block in enumerate(_blocks(choice)):
            start, delta = _streamed(block)
            yield {"type": "content_block_start", "index": index, "content_block": start}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        usage = {"output_tokens": completed.completion_tokens}
        yield {"type": "message_delta", "delta": _stop(choice), "usage": usage}
        yield {"type": "message_stop"}

    def _message(self, completed: Completed) -> dict[str, Any]:
        head = {"id": completed.id, "type": "message", "role": "assistant", "model": self.model}
        return head | {"stop_reason": None, "stop_sequence": None}


def parse(body: dict[str, Any], session: Session, completer: Completer, *, ignore_unsupported: bool) -> MessagesCall:
    """The request; raises ``GatewayError`` naming the field at fault."""
    if not ignore_unsupported:
        # Values that mean the same as leaving the parameter out.
        plain = {name: value for name, value in body.items() if (name, value) != ("thinking", {"type": "disabled"})}
        check_sampling(plain, completer.gconfig(session), known=_HONOURED | _WITHOUT_EFFECT)
    max_tokens = integer(body, "max_tokens", low=1, high=1 << 31)
    if max_tokens is None:
        raise invalid("max_tokens", "is missing")
    conversation = conversation_of(body, completer.preprocess)
    choice = anthropic_tool_choice(body.get("tool_choice"), ignore_unsupported=ignore_unsupported)
    constraint = constraint_of(
        _schema(body.get("output_config"), ignore_unsupported=ignore_unsupported),
        choice,
        conversation.tools,
        field="output_config",
        policy=completer.constraint_policy(session),
    )
    request = replace(
        conversation,
        constraint=constraint,
        parse_tools=choice.kind != "none",
        id_prefix="msg",
        max_tokens=max_tokens,
        stop=stop_texts(body, "stop_sequences"),
    )
    return MessagesCall(request, stream=boolean(body, "stream"), model=str(body["model"]))


def _schema(value: Any, *, ignore_unsupported: bool) -> dict[str, Any] | None:
    """The schema in ``output_config.format``; its other keys are hints for Anthropic's models."""
    if value is None:
        return None
    if not isinstance(value, dict) or (not ignore_unsupported and not value.keys() <= {"format"}):
        raise invalid("output_config", f"is {value!r:.80}; only its format is supported")
    return response_schema(value.get("format"), "output_config.format")


def conversation_of(body: dict[str, Any], preprocess: Preprocessing) -> Request:
    """System text, messages and tools of a request, after ``preprocess``."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "is missing or empty; send a list of messages")
    if len(messages) > MAX_MESSAGES:
        raise invalid("messages", f"has {len(messages)} messages; at most {MAX_MESSAGES} are allowed")
    system = body.get("system")
    normalized: list[Message] = [{"role": "system", "content": text_of(system, "system")}] if system else []
    for number, message in enumerate(messages):
        normalized += _messages(message, f"messages[{number}]")
    if normalized[-1]["role"] == "assistant":
        raise invalid("messages", "ends with an assistant message, which cannot be continued; end with a user message")
    return Request(preprocess(normalized), _tools(body), preprocessed=True)


def _messages(message: Any, field: str) -> list[Message]:
    """OpenAI's form of a message: each tool result becomes a message."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise invalid(f"{field}.role", "is neither user nor assistant")
    role, content = message["role"], message.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": text_of(content, f"{field}.content")}]
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[Message] = []
    for number, block in enumerate(content):
        place = f"{field}.content[{number}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use" and role == "assistant":
            calls.append(tool_call(block, place, id_key="id", arguments=_input(block, place)))
        elif kind == "tool_result" and role == "user":
            results.append(tool_result(block, place, id_key="tool_use_id", content_key="content"))
        elif kind == "text":
            texts.append(optional_text(block, "text", place))
        elif kind not in ("thinking", "redacted_thinking"):
            raise invalid(f"{place}.type", f"is {kind!r:.80}, which is not supported in a message with role {role}")
    if results and not texts:
        return results
    rest: Message = {"role": role, "content": "".join(texts)}
    return [*results, rest | ({"tool_calls": calls} if calls else {})]


def _input(block: dict[str, Any], place: str) -> dict[str, Any]:
    """The arguments of a tool's use."""
    value = block.get("input")
    if value is not None and not isinstance(value, dict):
        raise invalid(f"{place}.input", f"is {value!r:.80}, not an object")
    return value or {}


def _tools(body: dict[str, Any]) -> list[Tool]:
    converted = []
    for number, tool in enumerate(tools_of(body)):
        if not isinstance(tool, dict) or tool.get("type") not in (None, "custom"):
            raise invalid(f"tools[{number}]", "has no name and input_schema; tools of other types are not supported")
        declared = {**tool, "input_schema": tool.get("input_schema") or ANY_OBJECT}
        converted.append(function_tool(declared, f"tools[{number}]", schema="input_schema"))
    return converted


def _blocks(choice: Choice) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if choice.reasoning:
        blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
    if choice.content or not choice.tool_calls:
        blocks.append({"type": "text", "text": choice.content})
    for call in choice.tool_calls:
        arguments = _arguments(call.arguments)
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _streamed(block: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An empty block, and the delta that fills it."""
    if block["type"] == "tool_use":
        text = msgspec.json.encode(block["input"]).decode()
        return block | {"input": {}}, {"type": "input_json_delta", "partial_json": text}
    if block["type"] == "thinking":
        return block | {"thinking": ""}, {"type": "thinking_delta", "thinking": block["thinking"]}
    return block | {"text": ""}, {"type": "text_delta", "text": block["text"]}


def _stop(choice: Choice) -> dict[str, Any]:
    if choice.finish_reason == "stop" and choice.stop_text is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_text}
    return {"stop_reason": _STOP_REASONS.get(choice.finish_reason, "end_turn"), "stop_sequence": None}
