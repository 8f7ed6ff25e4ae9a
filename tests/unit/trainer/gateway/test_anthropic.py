"""Anthropic's messages as other programs send them, without an SDK that checks the request first."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from areal_trainer.gateway.chat import MAX_MESSAGES
from areal_trainer.gateway.errors import GatewayError
from support.gateway_app import Gateway, gateway_of, text_of, trained_text

ASKED = {"role": "user", "content": "1+1?"}
TOOL = {"name": "add", "input_schema": {"type": "object"}}
CALLS = {
    "normal_text": "Two calls.",
    "calls": [{"name": "add", "parameters": '{"a": 1}'}, {"name": "add", "parameters": '{"a": 2}'}],
}
PARSING: dict[str, Any] = {"agent": {"tool_call_parser": "qwen25"}, "parsed": {"/parse_function_call": CALLS}}


async def ask(gateway: Gateway, headers: dict[str, str], **body: Any) -> httpx.Response:
    body = {"model": "default", "max_tokens": 50, "messages": [ASKED], **body}
    key = headers["Authorization"].removeprefix("Bearer ")
    return await gateway.client.post("/v1/messages", json=body, headers={"x-api-key": key})


async def events_of(gateway: Gateway, headers: dict[str, str], **body: Any) -> list[Any]:
    response = await ask(gateway, headers, stream=True, **body)
    assert response.status_code == 200, response.text
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, _, data = block.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def test_the_events_of_a_stream_build_the_message() -> None:
    parsed = {**PARSING["parsed"], "/separate_reasoning": {"reasoning_text": "hm", "text": "rest"}}
    agent = {**PARSING["agent"], "reasoning_parser": "qwen3"}
    async with gateway_of("x", "x", agent=agent, parsed=parsed) as gateway:
        _, headers = await gateway.start()
        whole = (await ask(gateway, headers, tools=[TOOL])).json()
        events = await events_of(gateway, headers, tools=[TOOL])
        kinds = [event["type"] for event in events]
        assert (kinds[0], *kinds[-2:]) == ("message_start", "message_delta", "message_stop")
        assert events[0]["message"]["content"] == []
        built: list[Any] = []
        for event in events:
            if event["type"] == "content_block_start":
                built.append(dict(event["content_block"]))
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "input_json_delta":
                    built[event["index"]]["input"] = json.loads(delta["partial_json"])
                else:
                    key = delta["type"].removesuffix("_delta")
                    built[event["index"]][key] += delta[key]
        assert [block["type"] for block in built] == ["thinking", "text", "tool_use", "tool_use"]
        for block in (*built, *whole["content"]):
            block.pop("id", None)
        assert built == whole["content"]
        assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
        assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
        assert events[0]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


async def test_results_of_parallel_calls_continue_the_tokens_of_the_server() -> None:
    async with gateway_of("<two calls>", "3", **PARSING) as gateway:
        session, headers = await gateway.start()
        first = (await ask(gateway, headers, tools=[TOOL])).json()
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "2"}]}
            for block in first["content"]
            if block["type"] == "tool_use"
        ]
        results.append({"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral"}})
        messages = [ASKED, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": results}]
        gateway.engine.parsed["/parse_function_call"] = {"normal_text": "3", "calls": []}
        assert (await ask(gateway, headers, messages=messages, tools=[TOOL])).status_code == 200
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == "<two calls><|im_end|>3<|im_end|>"
        roles = [part.partition("\n")[0] for part in text_of(sample).split("<|im_start|>")]
        assert roles[-4:] == ["tool", "tool", "user", "assistant"]


async def test_tokens_are_counted_as_they_are_charged() -> None:
    async with gateway_of("x") as gateway:
        _, headers = await gateway.start()
        body = {"model": "default", "system": [{"type": "text", "text": "Be short."}], "messages": [ASKED]}
        counted = (await gateway.client.post("/v1/messages/count_tokens", json=body, headers=headers)).json()
        answer = (await ask(gateway, headers, **body)).json()
        assert counted == {"input_tokens": answer["usage"]["input_tokens"]}


USE = {"type": "tool_use", "id": "c", "name": "add", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "c", "content": "2"}


def assistant(block: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": [block]}, ASKED]}


def user(block: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [block]}]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [ASKED] * (MAX_MESSAGES + 1)}, "messages has 4097 messages"),
        ({"messages": [ASKED, {"role": "assistant", "content": "The answer is"}]}, "cannot be continued"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content is 5"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        (assistant(USE | {"name": None}), "messages[1].content[0].name"),
        (assistant(USE | {"id": 5}), "messages[1].content[0].id"),
        (assistant(USE | {"input": "text"}), "messages[1].content[0].input"),
        (assistant(RESULT), "messages[1].content[0].type"),
        (user(USE), "messages[0].content[0].type"),
        (user(RESULT | {"content": [{"type": "image"}]}), "messages[0].content[0].content[0]"),
        (user(RESULT | {"tool_use_id": 5}), "messages[0].content[0].tool_use_id"),
        (user({"type": "document"}), "messages[0].content[0].type"),
        (user("text"), "messages[0].content[0].type"),
        (user({"type": "text", "text": 5}), "messages[0].content[0].text"),
        ({"system": 5}, "system is 5"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "add", "input_schema": "object"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop_sequences": "x" * 300}, "stop_sequences"),
        ({"stream": "true"}, "stream"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
    ],
)
async def test_a_request_at_fault_names_the_field_that_it_has(body: dict[str, Any], words: str) -> None:
    async with gateway_of("a", **PARSING) as gateway:
        _, headers = await gateway.start()
        response = await ask(gateway, headers, **body)
        assert response.status_code == 400, response.text
        answer = response.json()
        assert answer["type"] == "error"
        assert answer["error"]["type"] == "invalid_request_error"
        assert words in answer["error"]["message"]
        assert len(answer["error"]["message"]) < 500
        assert not gateway.engine.calls


async def test_a_failed_generation_has_the_protocol_s_form_with_and_without_a_stream() -> None:
    async with gateway_of(error=GatewayError(503, "no server is ready")) as gateway:
        _, headers = await gateway.start()
        for stream in (False, True):
            response = await ask(gateway, headers, stream=stream)
            assert response.status_code == 503
            assert response.json() == {
                "type": "error",
                "error": {"type": "overloaded_error", "message": "no server is ready"},
            }
