"""From an answer's tokens to a message: stop texts, reasons to end, tool calls, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from areal_api.agent_config import AgentConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.gateway.completer import Completer, Request
from areal_trainer.gateway.conversation import ConversationTree
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.sessions import Session, Sessions
from support.chat_tokenizer import END, PAD
from support.gateway_app import ADMIN_KEY, TOKENIZER, Codec, SpeakingEngine, render

ASKED = [{"role": "user", "content": "1+1?"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def completer_of(
    engine: SpeakingEngine, *, gconfig: dict[str, Any] | None = None, **agent: Any
) -> tuple[Completer, Session]:
    config = AgentConfig(**agent)
    sampling = GenerationHyperparameters(stop_token_ids=[PAD, END], **{"max_tokens": 400, **(gconfig or {})})
    tree = ConversationTree(render, TOKENIZER.encode)
    sessions = Sessions(config, admin_key=ADMIN_KEY, new_tree=lambda: tree)
    completer = Completer(engine, sessions, Codec(), config, gconfig=sampling, eval_gconfig=sampling)
    return completer, sessions.start("task", key=None, evaluation=False, timeout_s=None)


async def test_the_first_stop_text_in_the_answer_ends_it() -> None:
    completer, session = completer_of(SpeakingEngine(["one|two.three"]), gconfig={"stop": ["|"]})
    completed = await completer.complete(session, Request(ASKED, stop=[".", "two"]))
    [choice] = completed.choices
    assert (choice.content, choice.stop_text, choice.finish_reason) == ("one", "|", "stop")
    assert completed.completion_tokens == len("one|two.three") + 1  # what was generated, with the stop token


async def test_an_answer_that_was_cut_off_keeps_its_whole_text() -> None:
    completer, session = completer_of(SpeakingEngine(["a|b"], stop_reason="length"))
    [choice] = (await completer.complete(session, Request(ASKED, stop=["|"]))).choices
    assert (choice.content, choice.stop_text, choice.finish_reason) == ("a|b", None, "length")


async def test_arguments_that_a_parser_returns_as_an_object_become_text() -> None:
    parsed = {"normal_text": None, "calls": [{"name": "add", "parameters": {"a": 1}}, {"name": "add"}]}
    engine = SpeakingEngine(["call"], parsed={"/parse_function_call": parsed})
    completer, session = completer_of(engine, tool_call_parser="qwen25")
    [choice] = (await completer.complete(session, Request(ASKED, tools=[ADD]))).choices
    assert [(call.name, call.arguments) for call in choice.tool_calls] == [("add", '{"a":1}'), ("add", "{}")]
    assert choice.content == ""
    assert choice.finish_reason == "tool_calls"
    assert len({call.id for call in choice.tool_calls}) == 2


async def test_reasoning_is_separated_before_calls_are_parsed() -> None:
    parsed = {
        "/separate_reasoning": {"reasoning_text": "hm", "text": "rest"},
        "/parse_function_call": {"normal_text": "rest", "calls": []},
    }
    engine = SpeakingEngine(["<think>hm</think>rest"], parsed=parsed)
    completer, session = completer_of(engine, tool_call_parser="qwen25", reasoning_parser="qwen3")
    [choice] = (await completer.complete(session, Request(ASKED, tools=[ADD]))).choices
    assert (choice.reasoning, choice.content) == ("hm", "rest")
    assert engine.parses[1][1]["text"] == "rest"


async def test_tools_without_a_parser_and_prompts_without_room_are_refused_before_a_call() -> None:
    engine = SpeakingEngine(["never"])
    completer, session = completer_of(engine, gconfig={"max_tokens": 30, "max_new_tokens": 10})
    with pytest.raises(GatewayError, match=r"set rollout\.agent\.tool_call_parser") as caught:
        await completer.complete(session, Request(ASKED, tools=[ADD]))
    assert (caught.value.status, caught.value.field) == (400, "tools")
    with pytest.raises(GatewayError, match=r"gconfig\.max_tokens allows 30") as caught:
        await completer.complete(session, Request([{"role": "user", "content": "x" * 100}]))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    assert engine.calls == []
    assert session.running == 0


async def test_a_call_that_is_cancelled_or_fails_records_nothing() -> None:
    engine = SpeakingEngine(["late"], hold=asyncio.Event())
    completer, session = completer_of(engine)
    call = asyncio.create_task(completer.complete(session, Request(ASKED)))
    while not engine.calls:
        await asyncio.sleep(0)
    assert session.running == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    engine.hold, engine.error = None, GatewayError(503, "no server")
    with pytest.raises(GatewayError, match="no server"):
        await completer.complete(session, Request(ASKED))
    assert session.running == 0
    assert session.size_bytes == 0


async def test_tokens_are_counted_without_a_call() -> None:
    completer, session = completer_of(SpeakingEngine([]))
    assert completer.count_tokens(session, Request(ASKED)) == len(TOKENIZER.encode(render(ASKED, [])))
