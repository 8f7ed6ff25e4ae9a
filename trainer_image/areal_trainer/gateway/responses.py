"""OpenAI's responses: requests, responses and events."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from areal_trainer.gateway.chat import MAX_MESSAGES
from areal_trainer.gateway.completer import Choice, Completed, Completer, Request
from areal_trainer.gateway.constraints import constraint_of, openai_tool_choice, response_schema
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.http import server_sent_event
from areal_trainer.gateway.messages import Message, invalid, normalize, text_of, tool_call, tool_result
from areal_trainer.gateway.sampling import boolean, check_sampling, integer
from areal_trainer.gateway.sessions import Session
from areal_trainer.gateway.tools import Tool, function_tool, tools_of

_HONOURED = frozenset(
    {"model", "input", "instructions", "previous_response_id", "tools", "tool_choice", "max_output_tokens", "stream"}
    | {"text", "parallel_tool_calls"}
)
# They affect billing, storage or caching at OpenAI, and nothing here.
_WITHOUT_EFFECT = frozenset(
    ("user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier")
) | {"stream_options"}
# Values that mean the same as leaving the parameter out.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "include": ([],),
    "truncation": ("disabled",),
    "background": (False,),
    "reasoning": ({},),
}


@dataclass(frozen=True)
class ResponsesCall:
    """A request and how to answer it."""

    request: Request
    stream: bool
    model: str
    settings: dict[str, Any]  # fields of the request that stand in the response
    session: Session
    previous: str | None
    new_messages: list[Message]  # after those of the previous response

    def response(self, completed: Completed) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        [choice] = completed.choices
        self._remember(completed, choice)
        cut = choice.finish_reason == "length"
        usage = {
            "input_tokens": completed.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completed.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": completed.prompt_tokens + completed.completion_tokens,
        }
        return self._head(completed) | {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": _items(choice),
            "usage": usage,
        }

    def events(self, completed: Completed) -> Iterator[bytes]:
        """The events of a streamed response."""
        numbers = itertools.count()
        for event in self._events(completed):
            yield server_sent_event({**event, "sequence_number": next(numbers)}, name=event["type"])

    def _events(self, completed: Completed) -> Iterator[dict[str, Any]]:
        done = self.response(completed)
        begun = self._head(completed) | {"status": "in_progress", "output": [], "usage": None}
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        for index, item in enumerate(done["output"]):
            place = {"output_index": index, "item_id": item["id"]}
            empty: dict[str, Any] = {"content": []} if item["type"] == "message" else {"arguments": ""}
            if item["type"] == "reasoning":
                empty = {}
            yield {"type": "response.output_item.added", "output_index": index, "item": {**item, **empty}}
            if item["type"] == "message":
                yield from _text_events(item["content"][0], place)
            elif item["type"] == "function_call":
                arguments = item["arguments"]
                yield {"type": "response.function_call_arguments.delta", "delta": arguments, **place}
                yield {"type": "response.function_call_arguments.done", "arguments": arguments, **place}
            yield {"type": "response.output_item.done", "output_index": index, "item": item}
        kind = "response.incomplete" if done["status"] == "incomplete" else "response.completed"
        yield {"type": kind, "response": done}

    def _head(self, completed: Completed) -> dict[str, Any]:
        head = {"id": completed.id, "object": "response", "created_at": int(time.time()), "model": self.model}
        return head | {"error": None, "incomplete_details": None, "metadata": {}, **self.settings}

    def _remember(self, completed: Completed, choice: Choice) -> None:
        self.session.histories.add(completed.id, self.previous, [*self.new_messages, choice.message])


def parse(body: dict[str, Any], session: Session, completer: Completer, *, ignore_unsupported: bool) -> ResponsesCall:
    """The request; raises ``GatewayError`` naming the field at fault."""
    if not ignore_unsupported:
        changed = {name: value for name, value in body.items() if value not in _PLAIN.get(name, ())}
        check_sampling(changed, completer.gconfig(session), known=_HONOURED | _WITHOUT_EFFECT)
    previous = _previous(body, session)
    earlier = [] if previous is None else session.histories.messages(previous)
    instructions, new = _instructions(body.get("instructions")), _input(body.get("input"))
    messages = instructions + earlier + new
    if len(messages) > MAX_MESSAGES:
        raise invalid("input", f"has {len(messages)} messages; at most {MAX_MESSAGES} are allowed")
    tools = _tools(body)
    choice = openai_tool_choice(body, ignore_unsupported=ignore_unsupported)
    request = Request(
        messages,
        tools=tools,
        parse_tools=choice.kind != "none",
        max_tokens=integer(body, "max_output_tokens", low=1, high=1 << 31),
        id_prefix="resp",
        constraint=constraint_of(
            response_schema(_format(body.get("text")), "text.format"),
            choice,
            tools,
            field="text.format",
            policy=completer.constraint_policy(session),
        ),
    )
    settings = {
        "instructions": body.get("instructions"),
        "previous_response_id": body.get("previous_response_id"),
        "tools": body.get("tools") or [],
        "tool_choice": body.get("tool_choice") or "auto",
        "parallel_tool_calls": choice.parallel,
    }
    return ResponsesCall(request, boolean(body, "stream"), str(body["model"]), settings, session, previous, new)


def _format(text: Any) -> Any:
    if text is None:
        return None
    if not isinstance(text, dict) or not text.keys() <= {"format"}:
        raise invalid("text", f"is {text!r:.80}; only text.format is supported")
    return text.get("format")


def _instructions(text: Any) -> list[Message]:
    return [{"role": "system", "content": text_of(text, "instructions")}] if text else []


def _previous(body: dict[str, Any], session: Session) -> str | None:
    """The ID of the response that the request continues, if any."""
    previous = body.get("previous_response_id")
    if previous is not None and (not isinstance(previous, str) or previous not in session.histories):
        raise GatewayError(
            404,
            f"previous_response_id is {previous!r:.80}, which is no response of this session",
            field="previous_response_id",
        )
    return previous


def _input(items: Any) -> list[Message]:
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise invalid("input", "is missing or empty; send text or a list of items")
    messages: list[Message] = []
    for number, item in enumerate(items):
        field = f"input[{number}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            messages.append(normalize(item, field=field))
        elif kind == "function_call":
            call = tool_call(item, field, id_key="call_id", arguments=item.get("arguments"))
            _append_call(messages, {"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append(tool_result(item, field, id_key="call_id", content_key="output"))
        elif kind != "reasoning":
            raise invalid(f"{field}.type", f"is {kind!r:.80}, which is not supported")
    return messages


def _append_call(messages: list[Message], call: Message) -> None:
    """Add a tool call to the assistant's message that it belongs to."""
    if messages and messages[-1]["role"] == "assistant":
        last = messages[-1]
        messages[-1] = {**last, "tool_calls": [*last.get("tool_calls", ()), *call["tool_calls"]]}
    else:
        messages.append(call)


def _tools(body: dict[str, Any]) -> list[Tool]:
    converted = []
    for number, tool in enumerate(tools_of(body)):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise invalid(f"tools[{number}]", "is no tool of type function; other types are not supported")
        converted.append(function_tool(tool, f"tools[{number}]", schema="parameters"))
    return converted


def _items(choice: Choice) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if choice.reasoning:
        content = [{"type": "reasoning_text", "text": choice.reasoning}]
        items.append({"type": "reasoning", "id": _id("rs"), "summary": [], "content": content})
    if choice.content or not choice.tool_calls:
        part = {"type": "output_text", "text": choice.content, "annotations": [], "logprobs": []}
        message = {"type": "message", "id": _id("msg"), "role": "assistant", "status": "completed", "content": [part]}
        items.append(message)
    for call in choice.tool_calls:
        function = {"call_id": call.id, "name": call.name, "arguments": call.arguments, "status": "completed"}
        items.append({"type": "function_call", "id": _id("fc"), **function})
    return items


def _text_events(part: dict[str, Any], place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    place = {**place, "content_index": 0}
    yield {"type": "response.content_part.added", "part": {**part, "text": ""}, **place}
    yield {"type": "response.output_text.delta", "delta": part["text"], "logprobs": [], **place}
    yield {"type": "response.output_text.done", "text": part["text"], "logprobs": [], **place}
    yield {"type": "response.content_part.done", "part": part, **place}


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
