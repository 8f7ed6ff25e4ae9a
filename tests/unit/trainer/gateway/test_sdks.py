"""The SDKs of OpenAI and Anthropic parse what the gateway answers, and their histories are recognised."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from areal_trainer.gateway.errors import GatewayError
from support.gateway_app import Gateway, gateway_of, trained_text

ASKED = "1+1?"
RAW = '<tool_call>{"name": "add",  "arguments": {"a": 1}}</tool_call>'
CALLED = {"normal_text": "Let me see.", "calls": [{"tool_index": 0, "name": "add", "parameters": '{"a": 1}'}]}
ANSWERED = {"normal_text": "2", "calls": []}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def with_tools() -> dict[str, Any]:
    return {"agent": {"tool_call_parser": "qwen25"}, "parsed": {"/parse_function_call": CALLED}}


@asynccontextmanager
async def session_of(*answers: str, **settings: Any) -> AsyncIterator[tuple[Gateway, str, dict[str, Any]]]:
    """A gateway, a session's ID, and arguments for an SDK's client."""
    async with gateway_of(*answers, **settings) as gateway:
        session, headers = await gateway.start()
        key = headers["Authorization"].removeprefix("Bearer ")
        yield (
            gateway,
            session,
            {"base_url": "http://gateway", "api_key": key, "http_client": gateway.client, "max_retries": 0},
        )


def anthropic_client(gateway: Gateway, access: dict[str, Any]) -> anthropic.AsyncAnthropic:
    """A client; this SDK uses a successor of httpx."""
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(gateway.app, raise_app_exceptions=False))
    return anthropic.AsyncAnthropic(**{**access, "http_client": client})


async def test_openai_chat_with_tools_is_one_conversation() -> None:
    async with session_of(RAW, "2", **with_tools()) as (gateway, session, access):
        client = openai.AsyncOpenAI(**access)
        tools: Any = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]
        messages: list[Any] = [{"role": "user", "content": ASKED}]
        first = await client.chat.completions.create(model="default", messages=messages, tools=tools)
        message = first.choices[0].message
        assert message.content == "Let me see."
        assert message.tool_calls is not None
        gateway.engine.parsed["/parse_function_call"] = ANSWERED
        messages += [message.model_dump(), {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2"}]
        second = await client.chat.completions.create(model="default", messages=messages, tools=tools)
        assert second.choices[0].message.content == "2"
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == f"{RAW}<|im_end|>2<|im_end|>"


async def test_openai_chat_stream() -> None:
    async with session_of("hello") as (_, _, access):
        stream = await openai.AsyncOpenAI(**access).chat.completions.create(
            model="default", messages=[{"role": "user", "content": ASKED}], stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "hello"


async def test_openai_responses_with_tools_are_one_conversation() -> None:
    async with session_of(RAW, "2", **with_tools()) as (gateway, session, access):
        client = openai.AsyncOpenAI(**access)
        arguments: dict[str, Any] = {
            "model": "default",
            "instructions": "Solve.",
            "tools": [{"type": "function", "name": "add", "parameters": SCHEMA, "strict": True}],
        }
        items: list[Any] = [{"role": "user", "content": ASKED}]
        first = await client.responses.create(input=items, **arguments)
        assert [item.type for item in first.output] == ["message", "function_call"]
        call = first.output[1]
        gateway.engine.parsed["/parse_function_call"] = ANSWERED
        items += [item.model_dump() for item in first.output]
        items += [{"type": "function_call_output", "call_id": call.call_id, "output": "2"}]  # type: ignore[union-attr]
        second = await client.responses.create(input=items, **arguments)
        assert second.output_text == "2"
        assert second.status == "completed"
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == f"{RAW}<|im_end|>2<|im_end|>"


async def test_openai_responses_continue_the_previous_one() -> None:
    async with session_of("3", "2") as (gateway, session, access):
        client = openai.AsyncOpenAI(**access)
        first = await client.responses.create(model="default", input=ASKED, max_output_tokens=7)
        assert gateway.engine.calls[0]["max_new_tokens"] == 7
        second = await client.responses.create(model="default", input="No.", previous_response_id=first.id)
        assert second.output_text == "2"
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == "3<|im_end|>2<|im_end|>"
        assert sample["interaction_id"] == second.id


async def test_openai_responses_stream_with_tools() -> None:
    async with session_of(RAW, **with_tools()) as (_, _, access):
        client = openai.AsyncOpenAI(**access)
        tool: Any = {"type": "function", "name": "add", "parameters": SCHEMA, "strict": False}
        async with client.responses.stream(model="default", input=ASKED, tools=[tool]) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created"
        assert "response.output_text.delta" in kinds
        assert "response.function_call_arguments.done" in kinds
        assert kinds[-1] == "response.completed"
        assert final.output_text == "Let me see."


async def test_a_response_that_was_cut_off_is_incomplete() -> None:
    async with session_of("abc", stop_reason="length") as (_, _, access):
        response = await openai.AsyncOpenAI(**access).responses.create(model="default", input=ASKED)
        assert response.status == "incomplete"
        assert response.incomplete_details is not None


async def test_anthropic_messages_with_tools_are_one_conversation() -> None:
    async with session_of(RAW, "2", **with_tools()) as (gateway, session, access):
        client = anthropic_client(gateway, access)
        arguments: dict[str, Any] = {
            "model": "default",
            "max_tokens": 50,
            "system": [{"type": "text", "text": "Solve.", "cache_control": {"type": "ephemeral"}}],
            "tools": [{"name": "add", "description": "adds", "input_schema": SCHEMA}],
        }
        messages: list[Any] = [{"role": "user", "content": ASKED}]
        first = await client.messages.create(messages=messages, **arguments)
        assert first.stop_reason == "tool_use"
        assert [block.type for block in first.content] == ["text", "tool_use"]
        assert first.content[1].input == {"a": 1}  # type: ignore[union-attr]
        gateway.engine.parsed["/parse_function_call"] = ANSWERED
        result = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": "2"}  # type: ignore[union-attr]
        messages += [
            {"role": "assistant", "content": [block.model_dump() for block in first.content]},
            {"role": "user", "content": [result]},
        ]
        counted = await client.messages.count_tokens(
            model="default", messages=messages, system=arguments["system"], tools=arguments["tools"]
        )
        second = await client.messages.create(messages=messages, **arguments)
        assert second.content[0].text == "2"  # type: ignore[union-attr]
        assert second.stop_reason == "end_turn"
        assert second.usage.input_tokens == counted.input_tokens == len(gateway.engine.calls[1]["input_ids"])
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == f"{RAW}<|im_end|>2<|im_end|>"
        assert sample["interaction_id"] == second.id


async def test_anthropic_stream_with_tools() -> None:
    async with session_of(RAW, **with_tools()) as (gateway, _, access):
        client = anthropic_client(gateway, access)
        async with client.messages.stream(
            model="default",
            max_tokens=50,
            messages=[{"role": "user", "content": ASKED}],
            tools=[{"name": "add", "input_schema": SCHEMA}],
        ) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()
        assert text == "Let me see."
        assert final.content[1].input == {"a": 1}  # type: ignore[union-attr]
        assert final.stop_reason == "tool_use"
        assert final.usage.output_tokens == len(RAW) + 1


async def test_anthropic_stop_sequence_is_named() -> None:
    async with session_of("ab|c") as (gateway, _, access):
        message = await anthropic_client(gateway, access).messages.create(
            model="default", max_tokens=50, messages=[{"role": "user", "content": ASKED}], stop_sequences=["|"]
        )
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "|")
        assert message.content[0].text == "ab"  # type: ignore[union-attr]


UNSUPPORTED: list[dict[str, Any]] = [
    {"temperature": 0.5},
    {"top_k": 3},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"tool_choice": {"type": "any"}},
    {"output_config": {"effort": "low"}},
]


@pytest.mark.parametrize("body", UNSUPPORTED, ids=lambda body: next(iter(body)))
async def test_anthropic_parameters_that_would_change_the_distribution_are_refused(body: dict[str, Any]) -> None:
    async with session_of() as (gateway, _, access):
        with pytest.raises(anthropic.BadRequestError) as caught:
            await anthropic_client(gateway, access).messages.create(
                model="default", max_tokens=50, messages=[{"role": "user", "content": ASKED}], extra_body=body
            )
        error = caught.value.body["error"]  # type: ignore[index]
        assert error["type"] == "invalid_request_error"
        assert next(iter(body)) in error["message"]


UNSUPPORTED_OF_RESPONSES: list[dict[str, Any]] = [
    {"temperature": 0.5},
    {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    {"reasoning": {"effort": "low"}},
    {"include": ["message.output_text.logprobs"]},
    {"background": True},
    {"conversation": "c"},
]


@pytest.mark.parametrize("body", UNSUPPORTED_OF_RESPONSES, ids=lambda body: next(iter(body)))
async def test_parameters_of_responses_that_cannot_be_honoured_are_refused(body: dict[str, Any]) -> None:
    async with session_of() as (_, _, access):
        with pytest.raises(openai.BadRequestError, match=next(iter(body))):
            await openai.AsyncOpenAI(**access).responses.create(model="default", input=ASKED, **body)


MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/messages", {"messages": [{"role": "user", "content": ASKED}]}, "max_tokens"),
    ("/v1/messages", {"max_tokens": 5, "messages": []}, "messages"),
    ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "tool"}]}, "messages[0].role"),
    ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content[0]"),
    ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": ASKED}], "tools": [1]}, "tools[0]"),
    ("/v1/responses", {}, "input"),
    ("/v1/responses", {"input": [{"type": "computer_call"}]}, "input[0].type"),
    ("/v1/responses", {"input": [5]}, "input[0].type"),
    ("/v1/responses", {"input": ASKED, "tools": [{"type": "web_search"}]}, "tools[0]"),
    ("/v1/responses", {"input": ASKED, "tools": 3}, "tools"),
]


@pytest.mark.parametrize(("path", "body", "field"), MALFORMED)
async def test_malformed_requests_are_refused_in_the_protocol_s_form(
    path: str, body: dict[str, Any], field: str
) -> None:
    async with gateway_of() as gateway:
        _, headers = await gateway.start()
        response = await gateway.client.post(path, json={"model": "default", **body}, headers=headers)
        assert response.status_code == 400, response.text
        answer = response.json()
        assert answer["error"]["type"] == "invalid_request_error"
        assert field in answer["error"]["message"]
        assert answer.get("type") == ("error" if path.endswith("messages") else None)


async def test_a_previous_response_of_another_session_is_not_found() -> None:
    async with session_of() as (_, _, access):
        with pytest.raises(openai.NotFoundError):
            await openai.AsyncOpenAI(**access).responses.create(
                model="default", input=ASKED, previous_response_id="resp-1"
            )


async def test_errors_have_the_sdk_s_types() -> None:
    error = GatewayError(503, "no server")
    async with session_of(error=error) as (gateway, _, access):
        messages: list[Any] = [{"role": "user", "content": ASKED}]
        with pytest.raises(anthropic.InternalServerError):
            await anthropic_client(gateway, access).messages.create(model="default", max_tokens=5, messages=messages)
        with pytest.raises(openai.NotFoundError):
            await openai.AsyncOpenAI(**access).chat.completions.create(model="gpt-9", messages=messages)
        with pytest.raises(openai.AuthenticationError):
            await openai.AsyncOpenAI(**{**access, "api_key": "sk-wrong"}).chat.completions.create(
                model="default", messages=messages
            )
        assert json.loads((await gateway.client.get("/health")).text) == {"status": "ok"}
