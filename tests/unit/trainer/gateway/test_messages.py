"""Messages in the form of chat templates, and what makes two of them the same in a history."""

from __future__ import annotations

from typing import Any

import pytest

from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.messages import canonical, normalize, parse_arguments

CALL = {"id": "call-1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def of(**message: Any) -> dict[str, Any]:
    return normalize(message, field="messages[0]")


def test_only_what_templates_use_is_kept() -> None:
    assert of(role="developer", content="Be short.", cache_control={}) == {"role": "system", "content": "Be short."}
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, {"type": "refusal", "refusal": "c"}]
    assert of(role="user", content=parts, name="me") == {"role": "user", "content": "abc", "name": "me"}
    assert of(role="tool", content=None, tool_call_id="c") == {"role": "tool", "content": "", "tool_call_id": "c"}


def test_arguments_of_calls_are_objects_where_they_can_be() -> None:
    [call] = of(role="assistant", content=None, tool_calls=[CALL])["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": {"a": 1}}
    assert parse_arguments("[1]") == "[1]"
    assert parse_arguments("{") == "{"
    assert parse_arguments("[" * 100_000) == "[" * 100_000


def test_an_answer_is_the_same_without_its_whitespace_and_the_ids_of_its_calls() -> None:
    one = of(role="assistant", content=" 2\n", tool_calls=[CALL])
    other = of(role="assistant", content="2", tool_calls=[{**CALL, "id": "another"}])
    assert canonical(one) == canonical(other)
    assert canonical(one) != canonical(of(role="assistant", content="2"))
    assert canonical(of(role="user", content=" 2")) != canonical(of(role="user", content="2"))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (5, "messages[0]"),
        ({"role": ["user"]}, "messages[0].role"),
        ({"role": "user", "content": {"a": 1}}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": [5]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}, "messages[0].tool_calls[0]"),
        ({"role": "tool", "tool_call_id": 5}, "messages[0].tool_call_id"),
    ],
)
def test_a_message_of_another_form_is_refused_by_field(message: Any, field: str) -> None:
    with pytest.raises(GatewayError) as caught:
        normalize(message, field="messages[0]")
    assert (caught.value.status, caught.value.field) == (400, field)
