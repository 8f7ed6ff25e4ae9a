"""OpenAI's chat completions as other programs send them, without an SDK that checks the request first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from areal_trainer.gateway.chat import MAX_MESSAGES
from support.gateway_app import Gateway, gateway_of, text_of

ASKED = {"role": "user", "content": "1+1?"}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLS = {
    "normal_text": "Two calls.",
    "calls": [
        {"tool_index": 0, "name": "add", "parameters": '{"a": 1}'},
        {"tool_index": 1, "name": "add", "parameters": {"a": 2}},
    ],
}
PARSING = {"agent": {"tool_call_parser": "qwen25"}, "parsed": {"/parse_function_call": CALLS}}


async def chunks_of(gateway: Gateway, headers: dict[str, str], **body: Any) -> list[Any]:
    response = await gateway.chat(headers, [ASKED], stream=True, **body)
    assert response.status_code == 200, response.text
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_a_stream_with_choices_tools_and_logprobs_has_what_the_answer_without_a_stream_has() -> None:
    body = {"n": 2, "tools": [ADD], "logprobs": True, "top_logprobs": 2}
    async with gateway_of("a", "b", "a", "b", **PARSING) as gateway:
        _, headers = await gateway.start()
        whole = (await gateway.chat(headers, [ASKED], **body)).json()
        chunks = await chunks_of(gateway, headers, **body, stream_options={"include_usage": True})
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert chunks[-1]["usage"] == whole["usage"]
        assert chunks[-1]["choices"] == []
        for index, choice in enumerate(whole["choices"]):
            parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
            deltas = [part["delta"] for part in parts]
            assert deltas[0]["role"] == "assistant"
            assert "".join(delta.get("content") or "" for delta in deltas) == choice["message"]["content"]
            calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
            assert [call.pop("index") for call in calls] == [0, 1]
            assert [call["function"] for call in calls] == [c["function"] for c in choice["message"]["tool_calls"]]
            assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["tool_calls"]
            entries = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
            assert [entry["token"] for entry in entries] == [e["token"] for e in choice["logprobs"]["content"]]
            assert {len(entry["top_logprobs"]) for entry in entries} == {2}


async def test_a_stream_without_include_usage_has_none() -> None:
    async with gateway_of("a") as gateway:
        _, headers = await gateway.start()
        assert all("usage" not in chunk for chunk in await chunks_of(gateway, headers))


async def test_an_answer_that_was_cut_off_says_so_in_a_stream() -> None:
    async with gateway_of("abc", stop_reason="length") as gateway:
        _, headers = await gateway.start()
        assert (await chunks_of(gateway, headers))[-1]["choices"][0]["finish_reason"] == "length"


async def test_arguments_of_calls_are_json_text_however_the_parser_returns_them() -> None:
    async with gateway_of("x", **PARSING) as gateway:
        _, headers = await gateway.start()
        message = (await gateway.chat(headers, [ASKED], tools=[ADD])).json()["choices"][0]["message"]
        assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [{"a": 1}, {"a": 2}]
        assert len({call["id"] for call in message["tool_calls"]}) == 2


async def test_text_may_come_in_parts_and_a_developer_is_the_system() -> None:
    async with gateway_of("2") as gateway:
        session, headers = await gateway.start()
        parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
        messages = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}]
        assert (await gateway.chat(headers, messages)).status_code == 200
        [sample] = await gateway.export(session)
        assert text_of(sample).startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>")


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [ASKED] * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "a"}}]}]}, "id"),
        ({"messages": [{"role": ["user"]}]}, "messages[0].role"),
        ({"tools": [{"type": "function", "function": {"name": "a", "description": 5}}]}, "description"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 5}}]}, "parameters"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": True, "n": 65}, "n"),
        ({"stream_options": {"include_usage": "yes"}}, "include_usage"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"functions": [{"name": "add"}]}, "functions"),
    ],
)
async def test_a_request_at_fault_names_its_field_and_calls_no_model(body: dict[str, Any], field: str) -> None:
    async with gateway_of("a", **PARSING) as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, **{"messages": [ASKED], **body})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"].endswith(field)
        assert error["param"] in error["message"]
        assert len(error["message"]) < 500
        assert not gateway.engine.calls


@pytest.mark.parametrize("levels", [100, 400, 480])
async def test_a_deep_schema_gets_an_answer_or_a_bad_request(levels: int) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": nested(levels)}}
    async with gateway_of("a", **PARSING) as gateway:
        _, headers = await gateway.start()
        assert (await gateway.chat(headers, [ASKED], tools=[tool])).status_code in (200, 400)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/chat/completions"), ("DELETE", "/v1/models")])
async def test_another_method_is_a_bad_request_in_the_protocol_s_form(method: str, path: str) -> None:
    async with gateway_of() as gateway:
        response = await gateway.client.request(method, path)
        assert response.status_code == 405
        assert response.json()["error"]["type"] == "invalid_request_error"
