"""Classes that change messages: what they get, what they return, and which histories continue an answer then."""

from __future__ import annotations

import re
from typing import Any

import pytest

from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.preprocessing import Preprocessing
from support.gateway_app import gateway_of, text_of

HERE = "unit.trainer.gateway.test_preprocessing"


class WithoutHeader:
    """Removes the line of a header that differs from call to call."""

    def __call__(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for message in messages:
            message["content"] = re.sub(r"^x-call:[^\n]*\n", "", message["content"])
        return messages


class Shouting:
    """Changes answers too."""

    def __call__(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [message | {"content": message["content"].upper()} for message in messages]


class Failing:
    def __call__(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise KeyError("content")


class Nothing:
    def __call__(self, messages: list[dict[str, Any]]) -> None: ...


class Needy:
    def __init__(self, argument: str) -> None: ...


class Calls:
    """The arguments of a call are JSON text, as OpenAI's clients send them."""

    def __call__(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        [call] = messages[0]["tool_calls"]
        assert call["function"]["arguments"] == '{"b":1,"a":2}'
        call["function"]["arguments"] = '{"a": 2}'
        return messages


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.syspath_prepend(request.path.parents[3])


@pytest.mark.parametrize(("names", "samples"), [([], 2), (["WithoutHeader"], 1), (["WithoutHeader", "Shouting"], 1)])
async def test_a_conversation_whose_header_changes_stays_one(names: list[str], samples: int) -> None:
    agent = {"message_preprocessors": [f"{HERE}:{name}" for name in names], "export_style": "concat"}
    async with gateway_of("one", "two", agent=agent) as gateway:
        session, headers = await gateway.start()
        messages: list[Any] = [{"role": "user", "content": "1?"}]
        for number in range(2):
            body = {"model": "default", "max_tokens": 9, "messages": messages, "system": f"x-call: {number}\nBe brief."}
            answer = await gateway.client.post("/v1/messages", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            messages += [{"role": "assistant", "content": answer.json()["content"]}, {"role": "user", "content": "2?"}]
        exported = await gateway.export(session, rewards=1.0)
        assert len(exported) == samples
        assert ("x-call" in text_of(exported[0])) == (not names)


async def test_openais_protocol_is_left_alone() -> None:
    async with gateway_of("one", agent={"message_preprocessors": [f"{HERE}:Shouting"]}) as gateway:
        session, headers = await gateway.start()
        assert (await gateway.chat(headers, [{"role": "user", "content": "hello"}])).status_code == 200
        [sample] = await gateway.export(session, rewards=1.0)
        assert "hello" in text_of(sample)


def test_a_class_gets_and_returns_openais_form() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    [changed] = Preprocessing([f"{HERE}:Calls"])([message])
    assert changed["tool_calls"][0]["function"]["arguments"] == {"a": 2}
    assert call["function"] == {"name": "f", "arguments": {"b": 1, "a": 2}}


@pytest.mark.parametrize(("name", "problem"), [("Failing", "KeyError: 'content'"), ("Nothing", "it returned None")])
async def test_a_class_that_fails_is_named(name: str, problem: str) -> None:
    async with gateway_of("x", agent={"message_preprocessors": [f"{HERE}:{name}"]}) as gateway:
        _, headers = await gateway.start()
        body = {"model": "default", "max_tokens": 9, "messages": [{"role": "user", "content": "1?"}]}
        answer = await gateway.client.post("/v1/messages", json=body, headers=headers)
        assert answer.status_code == 500
        message = answer.json()["error"]["message"]
        assert f"{HERE}:{name} of rollout.agent.message_preprocessors failed" in message
        assert problem in message
    with pytest.raises(GatewayError):
        Preprocessing([f"{HERE}:{name}"])([{"role": "user", "content": "1?"}])


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (f"{HERE}:Needy", "cannot be called without arguments"),
        (f"{HERE}:Missing", "has no 'Missing'"),
        ("collections:OrderedDict", "have no __call__"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused(path: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.agent\.message_preprocessors .*({problem})"):
        Preprocessing([path])
