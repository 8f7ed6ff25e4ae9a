"""Answers that must follow a grammar: response formats and forced tool calls, by SGLang's constrained decoding.

A grammar changes the distribution that tokens are drawn from: the server reports log-probs of what the grammar leaves,
and the trainer computes those of the whole vocabulary. Such an answer is therefore never trained; it is the context of
later ones. Training sessions refuse it unless ``rollout.agent.constrained_decoding`` is ``untrained``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.messages import invalid
from areal_trainer.gateway.sampling import boolean

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 32
ANY_OBJECT: dict[str, Any] = {"type": "object"}

Policy = Literal["refuse", "ignore", "untrained"]


@dataclass(frozen=True)
class ToolChoice:
    """Whether the model may (auto), may not (none) or must call a tool; ``name`` is the one that it must call."""

    kind: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True  # more than one call in an answer


@dataclass(frozen=True)
class Constraint:
    """A JSON schema, as text, that an answer must match. ``calls``: the answer is a list of tool calls."""

    schema: str
    calls: bool = False


def constraint_of(
    schema: dict[str, Any] | None, choice: ToolChoice, tools: list[dict[str, Any]], *, field: str, policy: Policy
) -> Constraint | None:
    """The constraint of a request, if it has one that ``policy`` honours; raises ``GatewayError``.

    ``schema``: of the response format in ``field``.
    """
    if choice.kind == "required":
        constraint = Constraint(_text(_calls_schema(choice, tools), "tools"), calls=True)
        value, changed = f"tool_choice is {choice.name or choice.kind!r:.80}, which forces a call", "tool_choice"
    elif schema is not None:
        constraint = Constraint(_text(schema, field))
        value, changed = f"{field} asks for constrained decoding", field
    else:
        return None
    if policy == "ignore":
        return None
    if policy == "refuse":
        raise GatewayError(
            400,
            f"{value}, so tokens would not come from the trained distribution; leave it out, or set "
            "rollout.agent.constrained_decoding=untrained, which leaves such completions out of training",
            field=changed,
            code="unsupported_value",
        )
    if schema is not None and tools and choice.kind != "none":
        raise GatewayError(
            400,
            f"{field} and tools exclude each other: the grammar leaves no room for calls; leave one out",
            field=field,
        )
    return constraint


def response_schema(value: Any, field: str) -> dict[str, Any] | None:
    """The JSON schema of a response format of OpenAI's, in either of its forms; None for text."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        raise invalid(f"{field}.type", f"is {kind!r:.80}; use text, json_object or json_schema")
    holder = value.get("json_schema", value)
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict):
        raise invalid(f"{field}.json_schema.schema", f"is {schema!r:.80}, not a JSON schema")
    return schema


def openai_tool_choice(body: dict[str, Any], *, ignore_unsupported: bool) -> ToolChoice:
    """``tool_choice`` of chat completions and of responses, which differ in where a function's name stands."""
    value, several = body.get("tool_choice"), body.get("parallel_tool_calls") is not False
    boolean(body, "parallel_tool_calls")
    if value in (None, "auto"):
        return _free(several, "parallel_tool_calls", ignore_unsupported=ignore_unsupported)
    if value == "none":
        return ToolChoice("none")
    if value == "required":
        return ToolChoice("required", parallel=several)
    if isinstance(value, dict) and value.get("type") == "function":
        function = value.get("function", value)
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name:
            return ToolChoice("required", name, several)
    raise invalid("tool_choice", f"is {value!r:.80}; use auto, none, required or one function")


def anthropic_tool_choice(value: Any, *, ignore_unsupported: bool) -> ToolChoice:
    """``tool_choice`` of Anthropic's messages."""
    if value is None:
        return ToolChoice()
    kind = value.get("type") if isinstance(value, dict) else None
    parallel = not (isinstance(value, dict) and value.get("disable_parallel_tool_use"))
    if kind == "auto":
        return _free(parallel, "tool_choice.disable_parallel_tool_use", ignore_unsupported=ignore_unsupported)
    if kind == "none":
        return ToolChoice("none")
    if kind == "any":
        return ToolChoice("required", parallel=parallel)
    if kind == "tool" and isinstance(value.get("name"), str) and value["name"]:
        return ToolChoice("required", value["name"], parallel)
    raise invalid("tool_choice", f"is {value!r:.80}; use type auto, any, none, or tool with a name")


def _free(parallel: bool, field: str, *, ignore_unsupported: bool) -> ToolChoice:
    """The choice of a model that may call tools; nothing limits how many it calls."""
    if not parallel and not ignore_unsupported:
        raise GatewayError(
            400,
            f"{field} limits the number of calls, which the trained distribution does not; leave it out, or set "
            "rollout.agent.unsupported_sampling=ignore",
            field=field,
            code="unsupported_value",
        )
    return ToolChoice()


def forced_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments in the answer to a forced call; none if it was cut off."""
    try:
        calls = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return []
    return [(str(call["name"]), call.get("parameters") or {}) for call in calls]


def _calls_schema(choice: ToolChoice, tools: list[dict[str, Any]]) -> dict[str, Any]:
    """A list of calls, as in SGLang's own chat completions."""
    functions = [tool["function"] for tool in tools]
    if choice.name is not None:
        functions = [function for function in functions if function["name"] == choice.name]
    if not functions:
        missing = "there are no tools" if choice.name is None else f"no tool has the name {choice.name!r:.80}"
        raise invalid("tool_choice", f"forces a call, and {missing}")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": [function["name"]]},
                "parameters": function.get("parameters") or ANY_OBJECT,
            },
            "required": ["name", "parameters"],
        }
        for function in functions
    ]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    return schema if choice.parallel else schema | {"maxItems": 1}


def _text(schema: dict[str, Any], field: str) -> str:
    encoded = msgspec.json.encode(schema)
    if len(encoded) > MAX_SCHEMA_BYTES:
        raise invalid(field, f"has a JSON schema of {len(encoded)} bytes; at most {MAX_SCHEMA_BYTES} are allowed")
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise invalid(field, f"has a JSON schema nested more than {MAX_SCHEMA_DEPTH} levels deep")
    return encoded.decode()


def _depth(value: Any) -> int:
    """Levels of nesting, at most one more than allowed."""
    level = 0
    here: list[Any] = [value]
    while here and level <= MAX_SCHEMA_DEPTH:
        below: list[Any] = []
        for one in here:
            below += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        level, here = level + 1, below
    return level
