"""Constrained decoding: what is refused, what is generated with a grammar, and that none of it is trained."""

from __future__ import annotations

import json
from typing import Any

import pytest

from areal_trainer.gateway.constraints import (
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    ToolChoice,
    constraint_of,
    forced_calls,
    response_schema,
)
from areal_trainer.gateway.errors import GatewayError
from support.gateway_app import gateway_of, trained_text

ASKED = {"role": "user", "content": "1+1?"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}
ADD = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
NEGATE = {"type": "function", "function": {"name": "negate"}}
UNTRAINED = {"constrained_decoding": "untrained"}
CALLED = '[{"name": "add", "parameters": {"a": 1}}]'

CONSTRAINED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": [ASKED], "response_format": {"type": "json_object"}}, "response_format"),
    ("/v1/chat/completions", {"messages": [ASKED], "response_format": FORMAT}, "response_format"),
    ("/v1/chat/completions", {"messages": [ASKED], "tools": [ADD], "tool_choice": "required"}, "tool_choice"),
    (
        "/v1/chat/completions",
        {"messages": [ASKED], "tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "add"}}},
        "tool_choice",
    ),
    (
        "/v1/responses",
        {"input": "1+1?", "text": {"format": {"type": "json_schema", "name": "sum", "schema": SCHEMA}}},
        "text.format",
    ),
    (
        "/v1/messages",
        {"messages": [ASKED], "max_tokens": 9, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        "output_config",
    ),
    (
        "/v1/messages",
        {
            "messages": [ASKED],
            "max_tokens": 9,
            "tools": [{"name": "add", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any"},
        },
        "tool_choice",
    ),
]


@pytest.mark.parametrize(("path", "body", "field"), CONSTRAINED)
async def test_a_grammar_is_refused_by_default(path: str, body: dict[str, Any], field: str) -> None:
    async with gateway_of() as gateway:
        _, headers = await gateway.start()
        response = await gateway.client.post(path, json={"model": "default", **body}, headers=headers)
        assert response.status_code == 400, response.text
        message = response.json()["error"]["message"]
        assert field in message
        assert "rollout.agent.constrained_decoding=untrained" in message
        assert not gateway.engine.calls


@pytest.mark.parametrize(("path", "body", "field"), CONSTRAINED)
async def test_a_grammar_reaches_the_server_and_its_answer_is_not_trained(
    path: str, body: dict[str, Any], field: str
) -> None:
    answer = CALLED if field == "tool_choice" else '{"a": 1}'
    async with gateway_of(answer, agent=UNTRAINED) as gateway:
        session, headers = await gateway.start()
        response = await gateway.client.post(path, json={"model": "default", **body}, headers=headers)
        assert response.status_code == 200, response.text
        assert isinstance(json.loads(gateway.engine.calls[0]["json_schema"]), dict)
        assert await gateway.export(session, rewards=1.0) == []


async def test_an_unsupported_grammar_is_ignored_by_the_setting_for_sampling_parameters() -> None:
    async with gateway_of("a", agent={"unsupported_sampling": "ignore"}) as gateway:
        session, headers = await gateway.start()
        assert (await gateway.chat(headers, [ASKED], response_format=FORMAT)).status_code == 200
        assert gateway.engine.calls[0]["json_schema"] is None
        assert len(await gateway.export(session, rewards=1.0)) == 1


@pytest.mark.parametrize("style", ["individual", "concat"])
async def test_only_the_free_answers_of_a_conversation_are_trained(style: str) -> None:
    async with gateway_of("first", '{"a": 1}', "last", agent=UNTRAINED) as gateway:
        session, headers = await gateway.start()
        messages: list[Any] = [ASKED]
        for more in ({}, {"response_format": FORMAT}, {}):
            answer = (await gateway.chat(headers, messages, **more)).json()["choices"][0]["message"]
            messages = [*messages, answer, ASKED]
        samples = await gateway.export(session, style=style, rewards=1.0)
        assert [trained_text(sample) for sample in samples] == (
            ["first<|im_end|>", "last<|im_end|>"] if style == "individual" else ["first<|im_end|>last<|im_end|>"]
        )
        assert [sample["reward"] for sample in samples] == ([1.0] * 2 if style == "individual" else [1.0])


async def test_a_constrained_answer_of_an_evaluation_counts() -> None:
    async with gateway_of('{"a": 1}', agent=UNTRAINED) as gateway:
        session, headers = await gateway.start(evaluation=True)
        await gateway.chat(headers, [ASKED], response_format=FORMAT)
        assert len(await gateway.export(session, rewards=1.0)) == 1


async def test_a_forced_call_is_returned_as_a_call_without_a_parser() -> None:
    async with gateway_of(CALLED, agent=UNTRAINED) as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, [ASKED], tools=[ADD, NEGATE], tool_choice="required")
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        [call] = choice["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("add", {"a": 1})


async def test_a_forced_call_that_was_cut_off_is_content() -> None:
    async with gateway_of('[{"name": "ad', agent=UNTRAINED, stop_reason="length") as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, [ASKED], tools=[ADD], tool_choice="required")
        choice = response.json()["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("length", '[{"name": "ad')


async def test_a_format_and_tools_together_are_refused() -> None:
    async with gateway_of(agent=UNTRAINED | {"tool_call_parser": "qwen25"}) as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, [ASKED], tools=[ADD], response_format=FORMAT)
        assert response.status_code == 400
        assert "exclude each other" in response.json()["error"]["message"]


def test_the_grammar_of_forced_calls_names_the_tools() -> None:
    every = constraint_of(None, ToolChoice("required"), [ADD, NEGATE], field="f", policy="untrained")
    one = constraint_of(None, ToolChoice("required", "add", False), [ADD, NEGATE], field="f", policy="untrained")
    assert every is not None
    assert one is not None
    names = [call["properties"]["name"]["enum"] for call in json.loads(every.schema)["items"]["anyOf"]]
    assert names == [["add"], ["negate"]]
    schema = json.loads(one.schema)
    assert (schema["maxItems"], schema["items"]["anyOf"][0]["properties"]["parameters"]) == (1, SCHEMA)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (nested(MAX_SCHEMA_DEPTH + 1), "nested more than 32 levels"),
        (nested(900), "nested more than 32 levels"),
        ({"description": "x" * MAX_SCHEMA_BYTES}, "at most 65536 are allowed"),
    ],
)
def test_a_schema_is_bounded(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(GatewayError, match=words):
        constraint_of(schema, ToolChoice(), [], field="response_format", policy="untrained")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"type": "grammar"}, "f.type"),
        ("json", "f.type"),
        ({"type": "json_schema"}, "f.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": []}}, "f.json_schema.schema"),
        ({"type": "json_schema", "json_schema": 5}, "f.json_schema.schema"),
    ],
)
def test_a_malformed_format_is_refused(value: Any, field: str) -> None:
    with pytest.raises(GatewayError) as caught:
        response_schema(value, "f")
    assert (caught.value.status, caught.value.field) == (400, field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any", "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "gone"}}, "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [ADD]}, "tool_choice"),
        ({"parallel_tool_calls": 3, "tools": [ADD]}, "parallel_tool_calls"),
    ],
)
async def test_a_malformed_tool_choice_is_refused(body: dict[str, Any], field: str) -> None:
    async with gateway_of(agent=UNTRAINED | {"tool_call_parser": "qwen25"}) as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, [ASKED], **body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field


def test_an_answer_that_is_no_json_has_no_calls() -> None:
    assert forced_calls("[{") == []
    assert forced_calls('[{"name": "a", "parameters": {"b": 2}}]') == [("a", {"b": 2})]
