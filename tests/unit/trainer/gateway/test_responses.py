"""OpenAI's responses as other programs send them, without an SDK that checks the request first."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from areal_trainer.gateway.chat import MAX_MESSAGES
from support.gateway_app import Gateway, gateway_of, text_of, trained_text

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
CALLS = {
    "normal_text": "Two calls.",
    "calls": [{"name": "add", "parameters": '{"a": 1}'}, {"name": "add", "parameters": '{"a": 2}'}],
}
PARSING: dict[str, Any] = {"agent": {"tool_call_parser": "qwen25"}, "parsed": {"/parse_function_call": CALLS}}


async def respond(gateway: Gateway, headers: dict[str, str], **body: Any) -> httpx.Response:
    return await gateway.client.post("/v1/responses", json={"model": "default", **body}, headers=headers)


async def events_of(gateway: Gateway, headers: dict[str, str], **body: Any) -> list[Any]:
    response = await respond(gateway, headers, stream=True, **body)
    assert response.status_code == 200, response.text
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, _, data = block.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def test_the_events_of_a_stream_build_the_final_response() -> None:
    parsed = {**PARSING["parsed"], "/separate_reasoning": {"reasoning_text": "hm", "text": "rest"}}
    agent = {**PARSING["agent"], "reasoning_parser": "qwen3"}
    async with gateway_of("x", agent=agent, parsed=parsed) as gateway:
        _, headers = await gateway.start()
        events = await events_of(gateway, headers, input="1+1?", tools=[TOOL])
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        kinds = [event["type"] for event in events]
        assert (kinds[0], kinds[1], kinds[-1]) == ("response.created", "response.in_progress", "response.completed")
        final = events[-1]["response"]
        assert [item["type"] for item in final["output"]] == ["reasoning", "message", "function_call", "function_call"]
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert done == final["output"]
        for index, item in enumerate(final["output"]):
            of_item = [event for event in events if event.get("item_id") == item["id"]]
            assert {event["output_index"] for event in of_item} <= {index}
            deltas = "".join(event["delta"] for event in of_item if event["type"].endswith(".delta"))
            if item["type"] == "message":
                assert deltas == item["content"][0]["text"] == "Two calls."
            elif item["type"] == "function_call":
                assert deltas == item["arguments"]


async def test_a_stream_that_was_cut_off_ends_as_incomplete() -> None:
    async with gateway_of("abc", stop_reason="length") as gateway:
        _, headers = await gateway.start()
        last = (await events_of(gateway, headers, input="1+1?"))[-1]
        assert last["type"] == "response.incomplete"
        assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_parallel_calls_are_one_message_whose_tokens_are_those_of_the_server() -> None:
    async with gateway_of("<two calls>", "3", **PARSING) as gateway:
        session, headers = await gateway.start()
        first = (await respond(gateway, headers, input="1+1?", tools=[TOOL])).json()
        calls = [item for item in first["output"] if item["type"] == "function_call"]
        results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "2"} for call in calls]
        items = [{"role": "user", "content": "1+1?"}, *first["output"], *results]
        gateway.engine.parsed["/parse_function_call"] = {"normal_text": "3", "calls": []}
        assert (await respond(gateway, headers, input=items, tools=[TOOL])).status_code == 200
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == "<two calls><|im_end|>3<|im_end|>"


async def test_instructions_are_not_inherited_by_the_next_response() -> None:
    async with gateway_of("a", "b") as gateway:
        session, headers = await gateway.start()
        first = (await respond(gateway, headers, input="x", instructions="Be short.")).json()
        body = {"input": [{"role": "user", "content": "y"}], "previous_response_id": first["id"]}
        await respond(gateway, headers, **body, instructions=[{"type": "input_text", "text": "Be long."}])
        second = text_of((await gateway.export(session))[1])
        assert second.startswith("<|im_start|>system\nBe long.")
        assert "Be short." not in second


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": ""}, None),  # an empty text is a text
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": ["message"]}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, "input[0].name"),
        ({"input": [{"type": "function_call", "name": "a", "call_id": 5}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": 5, "output": "2"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 2}]}, "input[0].output"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"instructions": 5}, "instructions"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a", "parameters": 5}]}, "tools[0].parameters"),
        ({"text": {"verbosity": "low"}}, "text"),
        ({"text": 5}, "text"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream": 1}, "stream"),
        ({"stop": ["x"]}, "stop"),
    ],
)
async def test_a_request_at_fault_names_the_field_that_it_has(body: dict[str, Any], field: str | None) -> None:
    async with gateway_of("a", **PARSING) as gateway:
        _, headers = await gateway.start()
        response = await respond(gateway, headers, **{"input": "1+1?", **body})
        if field is None:
            assert response.status_code == 200
            return
        assert response.status_code == (404 if "previous_response_id" in body else 400), response.text
        error = response.json()["error"]
        assert error["param"] == field
        assert field in error["message"]
        assert len(error["message"]) < 500
        assert not gateway.engine.calls
