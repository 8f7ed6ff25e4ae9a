"""OpenAI's chat completions: requests, responses and chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from areal_api.generation import GenerationHyperparameters
from areal_trainer.gateway.completer import MAX_CHOICES, Choice, Completed, Completer, Request
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.messages import invalid, normalize
from areal_trainer.gateway.sampling import boolean, check_sampling, integer, stop_texts

MAX_MESSAGES = 4096
MAX_TOOLS = 512
_HONOURED = frozenset(
    ("model", "messages", "tools", "tool_choice", "n", "max_tokens", "max_completion_tokens", "stop", "logprobs")
) | {"stream", "stream_options"}
# They affect billing, storage or caching at OpenAI, and nothing here.
_WITHOUT_EFFECT = frozenset(
    ("user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier")
)


@dataclass(frozen=True)
class ChatRequest:
    """A request and how to answer it."""

    request: Request
    logprobs: bool
    stream: bool
    include_usage: bool


def parse(body: dict[str, Any], gconfig: GenerationHyperparameters, *, ignore_unsupported: bool) -> ChatRequest:
    """The request; raises ``GatewayError`` naming the field at fault."""
    if not ignore_unsupported:
        check_sampling(body, gconfig, known=_HONOURED | _WITHOUT_EFFECT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "is missing or empty; send a list of messages")
    if len(messages) > MAX_MESSAGES:
        raise invalid("messages", f"has {len(messages)} messages; at most {MAX_MESSAGES} are allowed")
    limits = [integer(body, name, low=1, high=1 << 31) for name in ("max_tokens", "max_completion_tokens")]
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise invalid("stream_options", f"is {options!r:.80}, not an object")
    request = Request(
        [normalize(message, field=f"messages[{number}]") for number, message in enumerate(messages)],
        tools=tools_of(body),
        parse_tools=_parses_tools(body.get("tool_choice"), ignore_unsupported=ignore_unsupported),
        n=integer(body, "n", low=1, high=MAX_CHOICES) or 1,
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        stop=stop_texts(body, "stop"),
    )
    return ChatRequest(request, boolean(body, "logprobs"), boolean(body, "stream"), boolean(options, "include_usage"))


def tools_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The request's tools, all functions."""
    tools = body.get("tools") or []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise invalid("tools", f"is not a list of at most {MAX_TOOLS} tools")
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise invalid(f"tools[{number}]", "is no tool of type function; other types are not supported")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise invalid(f"tools[{number}].function.name", "is missing")
    return tools


def _parses_tools(choice: Any, *, ignore_unsupported: bool) -> bool:
    if choice in (None, "auto") or choice == "none":
        return choice != "none"
    if ignore_unsupported:
        return True
    raise GatewayError(
        400,
        f"tool_choice is {choice!r:.80}, which forces a call, so tokens would not come from the trained distribution; "
        "use 'auto' or 'none', or set rollout.agent.unsupported_sampling=ignore",
        field="tool_choice",
        code="unsupported_value",
    )


def response(completed: Completed, chat: ChatRequest, completer: Completer, *, model: str) -> dict[str, Any]:
    """The body of a response that is not streamed."""
    choices = [
        {
            "index": index,
            "message": _message(choice),
            "finish_reason": choice.finish_reason,
            "logprobs": _logprobs(choice, completer) if chat.logprobs else None,
        }
        for index, choice in enumerate(completed.choices)
    ]
    return _head(completed, "chat.completion", model) | {"choices": choices, "usage": _usage(completed)}


def chunks(completed: Completed, chat: ChatRequest, completer: Completer, *, model: str) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed response."""
    head = _head(completed, "chat.completion.chunk", model)

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return head | {"choices": [choice]}

    for index, choice in enumerate(completed.choices):
        yield chunk(index, {"role": "assistant", "content": ""})
        if choice.reasoning:
            yield chunk(index, {"reasoning_content": choice.reasoning})
        logprobs = _logprobs(choice, completer) if chat.logprobs else None
        if choice.content or logprobs is not None:
            yield chunk(index, {"content": choice.content}, logprobs=logprobs)
        for number, call in enumerate(_tool_calls(choice)):
            yield chunk(index, {"tool_calls": [{"index": number, **call}]})
        yield chunk(index, {}, choice.finish_reason)
    if chat.include_usage:
        yield head | {"choices": [], "usage": _usage(completed)}


def _head(completed: Completed, kind: str, model: str) -> dict[str, Any]:
    return {"id": completed.id, "object": kind, "created": int(time.time()), "model": model}


def _message(choice: Choice) -> dict[str, Any]:
    calls = _tool_calls(choice)
    message: dict[str, Any] = {"role": "assistant", "content": choice.content or (None if calls else "")}
    message["refusal"] = None
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    return message | ({"tool_calls": calls} if calls else {})


def _tool_calls(choice: Choice) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in choice.tool_calls
    ]


def _logprobs(choice: Choice, completer: Completer) -> dict[str, Any]:
    texts = completer.token_texts(choice.sample)
    content = [
        {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
        for text, logprob in zip(texts, choice.sample.logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def _usage(completed: Completed) -> dict[str, int]:
    prompt, completion = completed.prompt_tokens, completed.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
