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
    normalized: Message = {"role": ROLES[role], "content": text_of(message.get("content"), f"{field}.content")}
    if role == "assistant" and message.get("tool_calls") is not None:
        calls = message["tool_calls"]
        if not isinstance(calls, list):
            raise invalid(f"{field}.tool_calls", f"is {_shown(calls)}, not a list")
        normalized |= (
            {"tool_calls": [_declared_call(c, f"{field}.tool_calls[{i}]") for i, c in enumerate(calls)]}
            if calls
            else {}
        )
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            normalized[key] = optional_text(message, key, field)
    return normalized


def tool_call(call: dict[str, Any], field: str, *, id_key: str, arguments: Any) -> dict[str, Any]:
    """A normalized call of a tool, whose ``name`` and ID ``call`` has. ``arguments``: an object, or JSON text."""
    if not isinstance(call.get("name"), str):
        raise invalid(f"{field}.name", f"is {_shown(call.get('name'))}; use the function's name")
    arguments = arguments or "{}"
    if isinstance(arguments, str):
        arguments = parse_arguments(arguments)
    function = {"name": call["name"], "arguments": arguments}
    return {"id": optional_text(call, id_key, field), "type": "function", "function": function}


def tool_result(result: dict[str, Any], field: str, *, id_key: str, content_key: str) -> Message:
    """A normalized message with the result of a tool."""
    text = text_of(result.get(content_key), f"{field}.{content_key}")
    return {"role": "tool", "content": text, "tool_call_id": optional_text(result, id_key, field)}


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


def optional_text(value: dict[str, Any], key: str, field: str) -> str:
    """The text ``value[key]``; empty if it is not set. ``field`` names ``value`` in errors."""
    text = value.get(key)
    if text is not None and not isinstance(text, str):
        raise invalid(f"{field}.{key}", f"is {_shown(text)}, not text")
    return text or ""


def text_of(content: Any, field: str) -> str:
    """Text, or the text of a list of parts."""
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


def _declared_call(call: Any, field: str) -> dict[str, Any]:
    """A call in the form of chat completions."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(field, "has no function with a name")
    return tool_call(
        {"name": function["name"], "id": call.get("id")}, field, id_key="id", arguments=function.get("arguments")
    )


def parse_arguments(text: str) -> Any:
    """A tool call's arguments as chat templates expect them: an object, or the text if it is not JSON."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
