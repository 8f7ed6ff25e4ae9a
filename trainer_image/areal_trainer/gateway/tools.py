"""Tools in a request, in the form of chat completions, which templates and SGLang's parsers expect."""

from __future__ import annotations

from typing import Any

from areal_trainer.gateway.messages import invalid

MAX_TOOLS = 512
Tool = dict[str, Any]


def tools_of(body: dict[str, Any]) -> list[Any]:
    """The request's list of tools, in the form of its protocol."""
    tools = body.get("tools") or []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise invalid("tools", f"is {tools!r:.80}; use a list of at most {MAX_TOOLS} tools")
    return tools


def chat_tools(body: dict[str, Any]) -> list[Tool]:
    """The tools of a chat completion."""
    tools = tools_of(body)
    for number, tool in enumerate(tools):
        field = f"tools[{number}]"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise invalid(field, "is no tool of type function; other types are not supported")
        function_tool(function, f"{field}.function", schema="parameters")
    return tools


def function_tool(declared: dict[str, Any], field: str, *, schema: str) -> Tool:
    """A tool in the form of chat completions. ``schema`` is the key of its arguments' JSON schema in ``declared``."""
    name, description, parameters = declared.get("name"), declared.get("description"), declared.get(schema)
    if not isinstance(name, str) or not name:
        raise invalid(f"{field}.name", f"is {name!r:.80}; use the function's name")
    if description is not None and not isinstance(description, str):
        raise invalid(f"{field}.description", f"is {description!r:.80}, not text")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(f"{field}.{schema}", f"is {parameters!r:.80}, not a JSON schema")
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}
