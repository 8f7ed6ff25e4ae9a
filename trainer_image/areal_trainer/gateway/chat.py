"""OpenAI's chat completions: requests, responses and chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from areal_trainer.gateway.completer import MAX_CHOICES, Choice, Completed, Completer, Request
from areal_trainer.gateway.constraints import constraint_of, openai_tool_choice, response_schema
from areal_trainer.gateway.http import server_sent_event
from areal_trainer.gateway.messages import invalid, normalize
from areal_trainer.gateway.sampling import boolean, check_sampling, integer, stop_texts
from areal_trainer.gateway.sessions import Session
from areal_trainer.gateway.tools import chat_tools

MAX_MESSAGES = 4096
MAX_TOP_LOGPROBS = 20
_HONOURED = frozenset(
    ("model", "messages", "tools", "tool_choice", "n", "max_tokens", "max_completion_tokens", "stop", "logprobs")
) | {"stream", "stream_options", "top_logprobs", "response_format", "parallel_tool_calls"}
# They affect billing, storage or caching at OpenAI, and nothing here.
_WITHOUT_EFFECT = frozenset(
    ("user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier")
)


@dataclass(frozen=True)
class ChatCall:
    """A request and how to answer it. ``token_texts`` gives the text of each token."""

    request: Request
    logprobs: bool
    stream: bool
    include_usage: bool
    model: str
    token_texts: Callable[[list[int]], list[str]]

    def response(self, completed: Completed) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        choices = [
            {
                "index": index,
                "message": _message(choice),
                "finish_reason": choice.finish_reason,
                "logprobs": self._logprobs(choice),
            }
            for index, choice in enumerate(completed.choices)
        ]
        return self._head(completed, "chat.completion") | {"choices": choices, "usage": _usage(completed)}

    def events(self, completed: Completed) -> Iterator[bytes]:
        """The events of a streamed response."""
        yield from map(server_sent_event, self._chunks(completed))
        yield b"data: [DONE]\n\n"

    def _chunks(self, completed: Completed) -> Iterator[dict[str, Any]]:
        head = self._head(completed, "chat.completion.chunk")

        def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
            return head | {"choices": [choice]}

        for index, choice in enumerate(completed.choices):
            yield chunk(index, {"role": "assistant", "content": ""})
            if choice.reasoning:
                yield chunk(index, {"reasoning_content": choice.reasoning})
            logprobs = self._logprobs(choice)
            if choice.content or logprobs is not None:
                yield chunk(index, {"content": choice.content}, logprobs=logprobs)
            for number, call in enumerate(_tool_calls(choice)):
                yield chunk(index, {"tool_calls": [{"index": number, **call}]})
            yield chunk(index, {}, choice.finish_reason)
        if self.include_usage:
            yield head | {"choices": [], "usage": _usage(completed)}

    def _head(self, completed: Completed, kind: str) -> dict[str, Any]:
        return {"id": completed.id, "object": kind, "created": int(time.time()), "model": self.model}

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        sample = choice.sample
        content = [
            _token(text, logprob) | {"top_logprobs": []}
            for text, logprob in zip(self.token_texts(sample.tokens), sample.logprobs, strict=True)
        ]
        for entry, candidates in zip(content, sample.top_logprobs, strict=False):
            texts = self.token_texts([candidate.token for candidate in candidates])
            entry["top_logprobs"] = [_token(*pair) for pair in zip(texts, (c.logprob for c in candidates), strict=True)]
        return {"content": content, "refusal": None}


def parse(body: dict[str, Any], session: Session, completer: Completer, *, ignore_unsupported: bool) -> ChatCall:
    """The request; raises ``GatewayError`` naming the field at fault."""
    if not ignore_unsupported:
        check_sampling(body, completer.gconfig(session), known=_HONOURED | _WITHOUT_EFFECT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "is missing or empty; send a list of messages")
    if len(messages) > MAX_MESSAGES:
        raise invalid("messages", f"has {len(messages)} messages; at most {MAX_MESSAGES} are allowed")
    limits = [integer(body, name, low=1, high=1 << 31) for name in ("max_tokens", "max_completion_tokens")]
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise invalid("stream_options", f"is {options!r:.80}, not an object")
    tools = chat_tools(body)
    choice = openai_tool_choice(body, ignore_unsupported=ignore_unsupported)
    logprobs = boolean(body, "logprobs")
    top_logprobs = integer(body, "top_logprobs", low=0, high=MAX_TOP_LOGPROBS) or 0
    if top_logprobs and not logprobs:
        raise invalid("top_logprobs", f"is {top_logprobs} without logprobs; set logprobs to true")
    request = Request(
        [normalize(message, field=f"messages[{number}]") for number, message in enumerate(messages)],
        tools=tools,
        parse_tools=choice.kind != "none",
        n=integer(body, "n", low=1, high=MAX_CHOICES) or 1,
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        stop=stop_texts(body, "stop"),
        constraint=constraint_of(
            response_schema(body.get("response_format"), "response_format"),
            choice,
            tools,
            field="response_format",
            policy=completer.constraint_policy(session),
        ),
        top_logprobs=top_logprobs,
    )
    return ChatCall(
        request,
        logprobs=logprobs,
        stream=boolean(body, "stream"),
        include_usage=boolean(options, "include_usage"),
        model=str(body["model"]),
        token_texts=completer.token_texts,
    )


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


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


def _usage(completed: Completed) -> dict[str, int]:
    prompt, completion = completed.prompt_tokens, completed.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
