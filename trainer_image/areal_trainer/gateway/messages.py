"""Messages of a conversation: their form for chat templates, and the form by which a history is recognised."""

from __future__ import annotations

from typing import Any

import msgspec

from areal_trainer.gateway.errors import GatewayError

Message = dict[str, Any]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
_DETERMINISTIC = msgspec.json.Encoder(order="deterministic")


def normalize(message: Any, *, field: str) -> Message:
    """The parts of an OpenAI chat message that chat templates use, with its content as text.

    Raises ``GatewayError`` naming ``field`` for a message that is not of OpenAI's form.
    """
    if not isinstance(message, dict):
        raise invalid(field, f"is {_shown(message)}, not an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{field}.role", f"is {_shown(role)}; use one of {', '.join(ROLES)}")
    normalized: Message = {"role": ROLES[role], "content": _text(message.get("content"), f"{field}.content")}
    if role == "assistant" and message.get("tool_calls") is not None:
        calls = message["tool_calls"]
        if not isinstance(calls, list):
            raise invalid(f"{field}.tool_calls", f"is {_shown(calls)}, not a list")
        normalized |= (
            {"tool_calls": [_tool_call(c, f"{field}.tool_calls[{i}]") for i, c in enumerate(calls)]} if calls else {}
        )
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            if not isinstance(message[key], str):
                raise invalid(f"{field}.{key}", f"is {_shown(message[key])}, not text")
            normalized[key] = message[key]
    return normalized


def canonical(message: Message) -> bytes:
    """What identifies a normalized message in a history.

    SDKs return an assistant's message without exactly its whitespace, and some assign IDs to its tool calls themselves.
    """
    if message["role"] == "assistant":
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        return _DETERMINISTIC.encode(["assistant", message["content"].strip(), calls])
    return _DETERMINISTIC.encode(message)


def canonical_tools(tools: list[dict[str, Any]]) -> bytes:
    """What identifies a list of tools."""
    return _DETERMINISTIC.encode(tools)


def invalid(field: str, problem: str) -> GatewayError:
    """Status 400 for a field of a request."""
    return GatewayError(400, f"{field} {problem}", field=field)


def _text(content: Any, field: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(field, f"is {_shown(content)}, neither text nor a list of parts")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _TEXT_PARTS:
            raise invalid(f"{field}[{number}]", f"has type {_shown(kind)}; only text is supported")
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise invalid(f"{field}[{number}].text", f"is {_shown(text)}, not text")
        texts.append(text)
    return "".join(texts)


def _tool_call(call: Any, field: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(field, "has no function with a name")
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        arguments = parse_arguments(arguments)
    return {
        "id": str(call.get("id", "")),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def parse_arguments(text: str) -> Any:
    """A tool call's arguments as chat templates expect them: an object, or the text if it is not JSON."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
