"""The clients of OpenAI and Anthropic over a socket: blocking and asynchronous, streams, tools, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.http import MAX_BODY_BYTES
from support.gateway_app import ADMIN_KEY, Served, served

ASKED: list[Any] = [{"role": "user", "content": "1+1?"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALLED = {"normal_text": "Let me see.", "calls": [{"tool_index": 0, "name": "add", "parameters": '{"a": 1}'}]}
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
AGENT = {"tool_call_parser": "qwen25", "constrained_decoding": "untrained", "max_calls": 100}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    with served(agent=AGENT, parsed={"/parse_function_call": CALLED}) as gateway:
        yield gateway


@pytest.fixture
def chat(gateway: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.start()[1], max_retries=0)


@pytest.fixture
def claude(gateway: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gateway.url, api_key=gateway.start()[1], max_retries=0)


def says(gateway: Served, *answers: str) -> None:
    gateway.engine.answers[:] = answers


def test_a_chat_with_log_probs_and_candidates(gateway: Served, chat: openai.OpenAI) -> None:
    says(gateway, "2", "3")
    answer = chat.chat.completions.create(
        model="default", messages=ASKED, n=2, stop=["x"], max_completion_tokens=5, logprobs=True, top_logprobs=2
    )
    assert [choice.message.content for choice in answer.choices] == ["2", "3"]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [2, 2]
    assert logprobs.content[0].top_logprobs[0].token == "2"
    assert gateway.engine.calls[-1]["max_new_tokens"] == 5
    assert gateway.engine.calls[-1]["stop"] == ["x"]


def test_a_chat_streams_content_calls_and_usage(gateway: Served, chat: openai.OpenAI) -> None:
    says(gateway, "<tool_call>")
    with chat.chat.completions.stream(
        model="default", messages=ASKED, tools=[TOOL], stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.index("content.delta") < kinds.index("tool_calls.function.arguments.done")
    message = final.choices[0].message
    assert (message.content, final.choices[0].finish_reason) == ("Let me see.", "tool_calls")
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"a": 1}
    assert final.usage is not None
    assert final.usage.completion_tokens == len("<tool_call>") + 1


def test_a_chat_is_parsed_into_the_class_that_it_asked_for(gateway: Served, chat: openai.OpenAI) -> None:
    import pydantic

    class Sum(pydantic.BaseModel):
        a: int

    says(gateway, '{"a": 2}')
    answer = chat.chat.completions.parse(model="default", messages=ASKED, response_format=Sum)
    assert answer.choices[0].message.parsed == Sum(a=2)
    assert json.loads(gateway.engine.calls[-1]["json_schema"])["properties"] == {"a": {"title": "A", "type": "integer"}}


def test_responses_stream_in_order_and_continue(gateway: Served, chat: openai.OpenAI) -> None:
    says(gateway, "2", "4")
    with chat.responses.stream(model="default", input="1+1?", instructions="Be short.") as stream:
        events = list(stream)
        first = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    second = chat.responses.create(model="default", input="Twice?", previous_response_id=first.id)
    assert (first.output_text, second.output_text) == ("2", "4")
    history = gateway.engine.calls[-1]["input_ids"]
    assert history[: len(gateway.engine.calls[-2]["input_ids"])] != history  # instructions do not carry over
    with pytest.raises(openai.NotFoundError):
        chat.responses.create(model="default", input="?", previous_response_id="resp-gone")


def test_reasoning_items_and_outputs_of_functions_are_accepted(gateway: Served, chat: openai.OpenAI) -> None:
    says(gateway, "2")
    items: Any = [
        {"role": "developer", "content": "Use the tool."},
        {"role": "user", "content": [{"type": "input_text", "text": "1+1?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": []},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    assert chat.responses.create(model="default", input=items).output_text == "2"


async def test_the_asynchronous_clients(gateway: Served) -> None:
    says(gateway, "2", "3")
    key = gateway.start()[1]
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key) as client:
        answer = await client.chat.completions.create(model="default", messages=ASKED)
        assert answer.choices[0].message.content == "2"
    claude = anthropic.AsyncAnthropic(base_url=gateway.url, api_key=key)
    async with claude, claude.messages.stream(model="default", max_tokens=9, messages=ASKED) as stream:
        assert "".join([text async for text in stream.text_stream]) == "3"


def test_anthropic_streams_in_order(gateway: Served, claude: anthropic.Anthropic) -> None:
    says(gateway, "<tool_call>")
    tools: Any = [{"name": "add", "input_schema": SCHEMA}]
    with claude.messages.create(model="default", max_tokens=30, messages=ASKED, tools=tools, stream=True) as stream:
        kinds = [event.type for event in stream]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds == ["message_start", *block, *block, "message_delta", "message_stop"]


def test_anthropic_takes_blocks_of_system_text_and_failed_tools(gateway: Served, claude: anthropic.Anthropic) -> None:
    says(gateway, "2")
    messages: Any = [
        *ASKED,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "is_error": True,
                    "content": [{"type": "text", "text": "overflow"}],
                },
                {"type": "text", "text": "Again."},
            ],
        },
    ]
    system: Any = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
    arguments: dict[str, Any] = {"model": "default", "system": system, "messages": messages}
    answer = claude.messages.create(max_tokens=9, stop_sequences=["."], **arguments)
    assert answer.usage.input_tokens == claude.messages.count_tokens(**arguments).input_tokens


ERRORS: list[tuple[int, type[openai.APIStatusError], type[anthropic.APIStatusError]]] = [
    (400, openai.BadRequestError, anthropic.BadRequestError),
    (403, openai.PermissionDeniedError, anthropic.PermissionDeniedError),
    (404, openai.NotFoundError, anthropic.NotFoundError),
    (409, openai.ConflictError, anthropic.ConflictError),
    (413, openai.APIStatusError, anthropic.RequestTooLargeError),
    (429, openai.RateLimitError, anthropic.RateLimitError),
    (500, openai.InternalServerError, anthropic.InternalServerError),
    (503, openai.InternalServerError, anthropic.ServiceUnavailableError),
]


@pytest.mark.parametrize(("status", "of_openai", "of_anthropic"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_each_status_is_the_class_that_the_sdk_has_for_it(
    gateway: Served,
    chat: openai.OpenAI,
    claude: anthropic.Anthropic,
    status: int,
    of_openai: type[Exception],
    of_anthropic: type[Exception],
    stream: bool,
) -> None:
    gateway.engine.error = GatewayError(status, "because of the test")
    try:
        with pytest.raises(of_openai, match="because of the test"):
            chat.chat.completions.create(model="default", messages=ASKED, stream=stream)
        with pytest.raises(of_openai, match="because of the test"):
            chat.responses.create(model="default", input="1+1?", stream=stream)
        with pytest.raises(of_anthropic, match="because of the test"):
            claude.messages.create(model="default", max_tokens=9, messages=ASKED, stream=stream)
    finally:
        gateway.engine.error = None


@pytest.mark.parametrize("key", ["sk-of-nobody-at-all", ADMIN_KEY])
def test_a_foreign_key_is_an_authentication_error(gateway: Served, key: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=gateway.url, api_key=key, max_retries=0).models.list()
    client = anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        client.messages.create(model="default", max_tokens=9, messages=ASKED)


def test_an_image_is_refused_by_name(chat: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}]
    with pytest.raises(openai.BadRequestError, match=r"image_url.*only text is supported"):
        chat.chat.completions.create(model="default", messages=image)
    image = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"image.*not supported"):
        claude.messages.create(model="default", max_tokens=9, messages=image)


def test_a_huge_request_is_refused(chat: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        chat.chat.completions.create(model="default", messages=[{"role": "user", "content": "x" * MAX_BODY_BYTES}])
    assert caught.value.status_code == 413
