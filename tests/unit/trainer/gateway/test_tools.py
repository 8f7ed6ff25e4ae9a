"""Tools of a request, as each protocol declares them."""

from __future__ import annotations

from typing import Any

import pytest

from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.tools import MAX_TOOLS, chat_tools, function_tool, tools_of


def test_a_tool_has_the_form_of_chat_completions() -> None:
    schema = {"type": "object"}
    declared = {"name": "add", "description": "Adds.", "input_schema": schema, "cache_control": {}}
    assert function_tool(declared, "tools[0]", schema="input_schema") == {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": schema},
    }
    assert function_tool({"name": "add"}, "f", schema="parameters") == {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ({}, "tools[0].function.name"),
        ({"name": ""}, "tools[0].function.name"),
        ({"name": ["add"]}, "tools[0].function.name"),
        ({"name": "add", "description": 5}, "tools[0].function.description"),
        ({"name": "add", "parameters": "object"}, "tools[0].function.parameters"),
        ({"name": "add", "parameters": []}, "tools[0].function.parameters"),
    ],
)
def test_a_malformed_function_is_refused_by_field(function: dict[str, Any], field: str) -> None:
    with pytest.raises(GatewayError) as caught:
        chat_tools({"tools": [{"type": "function", "function": function}]})
    assert (caught.value.status, caught.value.field) == (400, field)
    assert caught.value.message.startswith(field)


@pytest.mark.parametrize("tools", ["add", {"a": 1}, 5, [{}] * (MAX_TOOLS + 1)])
def test_tools_are_a_bounded_list(tools: Any) -> None:
    with pytest.raises(GatewayError, match=f"use a list of at most {MAX_TOOLS} tools"):
        tools_of({"tools": tools})


@pytest.mark.parametrize("body", [{}, {"tools": None}, {"tools": []}])
def test_a_request_without_tools_has_none(body: dict[str, Any]) -> None:
    assert chat_tools(body) == []
