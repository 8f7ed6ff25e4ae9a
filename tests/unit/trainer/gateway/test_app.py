"""The gateway's HTTP interface: what agents and administrators can do, and the errors they get."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from areal_trainer.gateway.errors import GatewayError
from support.gateway_app import ADMIN_KEY, Gateway, gateway_of, text_of, trained_text

ASKED = {"role": "user", "content": "1+1?"}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_a_session_becomes_samples_with_logprobs_and_versions() -> None:
    async with gateway_of("3", "2") as gateway:
        session, headers = await gateway.start()
        first = (await gateway.chat(headers, [ASKED])).json()
        assert first["object"] == "chat.completion"
        assert first["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "3", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ]
        prompt_tokens = len(gateway.engine.calls[0]["input_ids"])
        assert first["usage"] == {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 2,
            "total_tokens": prompt_tokens + 2,
        }
        await gateway.chat(headers, [ASKED, first["choices"][0]["message"], {"role": "user", "content": "No."}])
        rewarded = await gateway.client.post("/rl/set_reward", json={"reward": 1.0}, headers=headers)
        assert rewarded.status_code == 200
        ended = (await gateway.client.post("/rl/end_session", headers=headers)).json()
        assert ended == {"message": "success", "session_id": session, "interaction_count": 2}
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == "3<|im_end|>2<|im_end|>"
        assert text_of(sample).endswith("<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n2<|im_end|>")
        assert [v for v in sample["versions"] if v >= 0] == [1, 1, 2, 2]
        assert [p for p, t in zip(sample["logprobs"], sample["loss_mask"], strict=True) if t] == [-1, -1, -2, -2]
        assert sample["reward"] == 1.0
        assert len(gateway.sessions) == 0


async def test_rewards_by_completion_and_the_discount_of_the_request_are_used() -> None:
    async with gateway_of("3", "2", agent={"turn_discount": 0.0}) as gateway:
        session, headers = await gateway.start()
        first = (await gateway.chat(headers, [ASKED])).json()["id"]
        second = (await gateway.chat(headers, [ASKED])).json()["id"]
        samples = await gateway.export(session, rewards={first: 0.5, second: 1.0}, discount=0.5)
        assert [(sample["interaction_id"], sample["reward"]) for sample in samples] == [(first, 1.0), (second, 1.0)]


async def test_choices_stops_limits_and_logprobs_are_honoured() -> None:
    async with gateway_of("ab|c", "xy", gconfig={"max_new_tokens": 50}) as gateway:
        _, headers = await gateway.start()
        body = {"n": 2, "stop": "|", "max_tokens": 9, "logprobs": True}
        choices = (await gateway.chat(headers, [ASKED], **body)).json()["choices"]
        assert [choice["message"]["content"] for choice in choices] == ["ab", "xy"]
        assert {name: gateway.engine.calls[0][name] for name in ("n", "stop", "max_new_tokens")} == {
            "n": 2,
            "stop": ["|"],
            "max_new_tokens": 9,
        }
        logprobs = choices[1]["logprobs"]["content"]
        assert [entry["token"] for entry in logprobs] == ["x", "y", "<|im_end|>"]
        assert {entry["logprob"] for entry in logprobs} == {-1.0}


@pytest.mark.parametrize("asked", [10, 10**6])
async def test_max_tokens_never_exceeds_gconfig(asked: int) -> None:
    async with gateway_of("a", gconfig={"max_new_tokens": 20}) as gateway:
        _, headers = await gateway.start()
        await gateway.chat(headers, [ASKED], max_completion_tokens=asked)
        assert gateway.engine.calls[0]["max_new_tokens"] == min(asked, 20)


async def events_of(gateway: Gateway, headers: dict[str, str], **body: Any) -> list[Any]:
    response = await gateway.chat(headers, [ASKED], stream=True, **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


async def test_a_streamed_answer_has_the_same_content_and_usage() -> None:
    async with gateway_of("hello") as gateway:
        session, headers = await gateway.start()
        events = await events_of(gateway, headers, stream_options={"include_usage": True})
        deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "hello"
        assert [e["choices"][0]["finish_reason"] for e in events if e["choices"]] == [None, None, "stop"]
        assert events[-1]["usage"]["completion_tokens"] == 6
        [sample] = await gateway.export(session)
        assert trained_text(sample) == "hello<|im_end|>"


def with_tools(**more: Any) -> dict[str, Any]:
    answer = {"normal_text": "", "calls": [{"tool_index": 0, "name": "add", "parameters": '{"a": 1}'}]}
    return {"agent": {"tool_call_parser": "qwen25"}, "parsed": {"/parse_function_call": answer}, **more}


async def test_tool_calls_are_parsed_by_the_server_and_continue_the_conversation() -> None:
    raw = '<tool_call>{"name": "add",  "arguments": {"a": 1}}</tool_call>'
    async with gateway_of(raw, "2", **with_tools()) as gateway:
        session, headers = await gateway.start()
        choice = (await gateway.chat(headers, [ASKED], tools=[ADD])).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        [call] = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
        assert gateway.engine.parses == [
            ("/parse_function_call", {"text": raw, "tools": [ADD], "tool_call_parser": "qwen25"})
        ]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "2"}
        gateway.engine.parsed["/parse_function_call"] = {"normal_text": "2", "calls": []}
        await gateway.chat(headers, [ASKED, choice["message"], result], tools=[ADD])
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == f"{raw}<|im_end|>2<|im_end|>"


async def test_tool_choice_none_leaves_the_answer_as_it_is() -> None:
    async with gateway_of("<tool_call>", **with_tools()) as gateway:
        _, headers = await gateway.start()
        choice = (await gateway.chat(headers, [ASKED], tools=[ADD], tool_choice="none")).json()["choices"][0]
        assert choice["message"]["content"] == "<tool_call>"
        assert not gateway.engine.parses


async def test_streamed_tool_calls_have_their_index() -> None:
    async with gateway_of("<tool_call>", **with_tools()) as gateway:
        _, headers = await gateway.start()
        events = await events_of(gateway, headers, tools=[ADD])
        [call] = [c for event in events for c in event["choices"][0]["delta"].get("tool_calls", ())]
        assert (call["index"], call["function"]["name"]) == (0, "add")
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_reasoning_is_separated_by_the_server() -> None:
    parsed = {"/separate_reasoning": {"reasoning_text": "hm", "text": "2"}}
    async with gateway_of("<think>hm</think>2", "x", agent={"reasoning_parser": "qwen3"}, parsed=parsed) as gateway:
        session, headers = await gateway.start()
        message = (await gateway.chat(headers, [ASKED])).json()["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("2", "hm")
        await gateway.chat(headers, [ASKED, {"role": "assistant", "content": "2"}, ASKED])
        [sample] = await gateway.export(session, style="concat")
        assert trained_text(sample) == "<think>hm</think>2<|im_end|>x<|im_end|>"


UNSUPPORTED = [
    {"temperature": 0.2},
    {"top_p": 0.9},
    {"top_k": 5},
    {"min_p": 0.1},
    {"presence_penalty": 1},
    {"frequency_penalty": 1},
    {"repetition_penalty": 1.1},
    {"logit_bias": {"5": 1}},
    {"seed": 1},
    {"min_tokens": 3},
    {"reasoning_effort": "low"},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"parallel_tool_calls": False},
]


@pytest.mark.parametrize("body", UNSUPPORTED, ids=lambda body: next(iter(body)))
async def test_what_would_change_the_trained_distribution_is_refused_or_ignored_by_setting(
    body: dict[str, Any],
) -> None:
    async with gateway_of(**with_tools()) as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, [ASKED], **body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == next(iter(body))
        assert error["type"] == "invalid_request_error"
        assert "rollout.agent.unsupported_sampling=ignore" in error["message"]
        assert not gateway.engine.calls
    setting = {"tool_call_parser": "qwen25", "unsupported_sampling": "ignore"}
    async with gateway_of("a", **with_tools(agent=setting)) as gateway:
        _, headers = await gateway.start()
        assert (await gateway.chat(headers, [ASKED], **body)).status_code == 200


async def test_the_run_s_own_values_and_parameters_without_effect_are_accepted() -> None:
    async with gateway_of("a") as gateway:
        _, headers = await gateway.start()
        body = {"temperature": 1.0, "top_p": 1, "top_k": -1, "presence_penalty": 0, "seed": None, "user": "me"}
        body |= {"response_format": {"type": "text"}, "store": False, "metadata": {"a": "b"}}
        assert (await gateway.chat(headers, [ASKED], **body)).status_code == 200


async def test_evaluation_samples_as_configured_whatever_the_agent_asks() -> None:
    async with gateway_of("a") as gateway:
        _, headers = await gateway.start(evaluation=True)
        assert (await gateway.chat(headers, [ASKED], temperature=0.3)).status_code == 200
        assert gateway.engine.calls[0]["evaluation"] is True


MALFORMED = [
    ({"messages": "hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "name": 5}]}, "messages[0].name"),
    ({"n": 0}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": 3}, "stream_options"),
    ({"tools": {"a": 1}}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [ADD]}, "tools"),  # without a parser
]


@pytest.mark.parametrize(("body", "field"), MALFORMED, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_malformed_request_is_refused_in_openai_s_form(body: dict[str, Any], field: str) -> None:
    async with gateway_of("a") as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, **{"messages": [ASKED], **body})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == field
        assert field in error["message"]
        assert gateway.sessions.counters.refused == 1


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[1]", 400),
        (b'{"a": "\xff"}', 400),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"messages": "' + b"a" * (17 << 20) + b'"}', 413),
        (b'{"model": "default", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    ],
    ids=["cut off", "no object", "no UTF-8", "deep", "huge", "surrogate"],
)
async def test_a_body_that_is_no_bounded_json_object_is_refused(content: bytes, status: int) -> None:
    async with gateway_of("a") as gateway:
        _, headers = await gateway.start()
        response = await gateway.client.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


async def test_an_unknown_model_and_an_unknown_route_are_not_found() -> None:
    async with gateway_of("a") as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, [ASKED], model="gpt-4o")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        response = await gateway.client.get("/v1/files", headers=headers)
        assert response.status_code == 404
        assert "not a route" in response.json()["error"]["message"]


async def test_the_model_is_listed_under_both_names() -> None:
    async with gateway_of() as gateway:
        _, headers = await gateway.start()
        listed = (await gateway.client.get("/v1/models", headers=headers)).json()
        assert [model["id"] for model in listed["data"]] == ["default", "org/model"]
        for model in listed["data"]:
            assert (await gateway.client.get(f"/models/{model['id']}", headers=headers)).json() == model
        unknown = await gateway.client.get("/v1/models/gpt-9", headers=headers)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({}, 401, "has no key"),
        (bearer("sk-of-nobody"), 401, "belongs to no session"),
        (bearer(ADMIN_KEY), 401, "admin key"),
        ({"Authorization": "Basic abc"}, 401, "has no key"),
        (bearer("sk-\u00e9"), 401, "belongs to no session"),
    ],
)
async def test_a_missing_or_foreign_key_is_refused(headers: dict[str, str], status: int, words: str) -> None:
    async with gateway_of("a") as gateway:
        encoded = {name: value.encode("utf-8") for name, value in headers.items()}
        response = await gateway.chat(encoded, [ASKED])  # type: ignore[arg-type]
        assert response.status_code == status
        assert words in response.json()["error"]["message"]


async def test_only_the_admin_key_opens_and_exports_sessions() -> None:
    async with gateway_of("a") as gateway:
        session, headers = await gateway.start()
        for path, body in (("/rl/start_session", {}), ("/export_trajectories", {"session_id": session})):
            assert (await gateway.client.post(path, json=body, headers=headers)).status_code == 403
        assert (await gateway.client.get("/rl/statistics", headers=headers)).status_code == 403


async def test_a_session_that_ended_or_was_exported_accepts_nothing() -> None:
    async with gateway_of("a") as gateway:
        session, headers = await gateway.start()
        await gateway.client.post("/rl/end_session", headers=headers)
        assert (await gateway.chat(headers, [ASKED])).status_code == 401
        reward = await gateway.client.post("/rl/set_reward", json={"reward": 1}, headers=headers)
        assert reward.status_code == 401
        assert await gateway.export(session) == []
        assert (await gateway.admin("/export_trajectories", {"session_id": session})).status_code == 404


async def test_an_expired_session_is_closed_and_counted() -> None:
    now = [0.0]
    async with gateway_of("a", agent={"session_timeout_seconds": 10}, clock=lambda: now[0]) as gateway:
        session, headers = await gateway.start()
        now[0] = 10.5
        response = await gateway.chat(headers, [ASKED])
        assert response.status_code == 401
        assert "has expired" in response.json()["error"]["message"]
        assert (await gateway.admin("/export_trajectories", {"session_id": session})).status_code == 404
        statistics = await gateway.client.get("/rl/statistics", headers=bearer(ADMIN_KEY))
        assert statistics.json() | {"refused": 0} == {
            "started": 1, "ended": 0, "ended_calls": 0, "rewarded": 0, "abandoned": 0, "expired": 1, "stale": 0,
            "calls": 0, "refused": 0, "failed": 0, "open": 0,
        }  # fmt: skip


async def test_forgotten_sessions_do_not_accumulate() -> None:
    now = [0.0]
    async with gateway_of(agent={"session_timeout_seconds": 10}, clock=lambda: now[0]) as gateway:
        for _ in range(3):
            await gateway.start()
        now[0] = 11.0
        await gateway.start()
        assert len(gateway.sessions) == 1
        assert gateway.sessions.counters.expired == 3


async def test_a_key_of_the_caller_s_choice_can_be_used_again_after_the_session() -> None:
    async with gateway_of("a") as gateway:
        session, headers = await gateway.start(api_key="sk-0123456789abcdef")
        again = await gateway.admin("/rl/start_session", {"task_id": "t", "api_key": "sk-0123456789abcdef"})
        assert again.status_code == 409
        await gateway.client.post("/rl/end_session", headers=headers)
        other, headers = await gateway.start(api_key="sk-0123456789abcdef")
        await gateway.chat(headers, [ASKED])
        assert await gateway.export(session) == []
        assert len(await gateway.export(other)) == 1


@pytest.mark.parametrize("key", ["short", ADMIN_KEY, "with space 0123456789", "x" * 300])
async def test_a_bad_key_of_the_caller_s_choice_is_refused(key: str) -> None:
    async with gateway_of() as gateway:
        assert (await gateway.admin("/rl/start_session", {"api_key": key})).status_code == 400


async def test_an_agent_that_never_ends_reaches_the_limit_of_calls() -> None:
    async with gateway_of(*"abc", agent={"max_calls": 2}) as gateway:
        session, headers = await gateway.start()
        statuses = [(await gateway.chat(headers, [ASKED])).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        assert len(await gateway.export(session)) == 2


async def test_an_agent_that_floods_reaches_the_limit_of_concurrent_calls() -> None:
    hold = asyncio.Event()
    async with gateway_of(*"abc", agent={"max_concurrent_calls": 2}, hold=hold) as gateway:
        _, headers = await gateway.start()
        running = [asyncio.create_task(gateway.chat(headers, [ASKED])) for _ in range(2)]
        while len(gateway.engine.calls) < 2:
            await asyncio.sleep(0)
        refused = await gateway.chat(headers, [ASKED])
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        hold.set()
        assert [response.status_code for response in await asyncio.gather(*running)] == [200, 200]


async def test_a_conversation_that_is_too_long_is_refused_as_openai_does() -> None:
    async with gateway_of("a", gconfig={"max_tokens": 20}) as gateway:
        _, headers = await gateway.start()
        response = await gateway.chat(headers, [ASKED])
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_a_failed_generation_is_a_server_error_and_not_recorded() -> None:
    async with gateway_of("a", error=GatewayError(503, "no server")) as gateway:
        session, headers = await gateway.start()
        response = await gateway.chat(headers, [ASKED])
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "server_error"
        assert gateway.sessions.counters.failed == 1
        assert await gateway.export(session) == []


async def test_an_answer_that_comes_after_the_end_of_its_session_is_not_trained() -> None:
    hold = asyncio.Event()
    async with gateway_of("a", hold=hold) as gateway:
        session, headers = await gateway.start()
        running = asyncio.create_task(gateway.chat(headers, [ASKED]))
        while not gateway.engine.calls:
            await asyncio.sleep(0)
        assert await gateway.export(session) == []
        hold.set()
        assert (await running).status_code == 401


@pytest.mark.parametrize("reward", [None, "1", True, float("inf"), [1]])
async def test_a_reward_that_is_no_finite_number_is_refused(reward: Any) -> None:
    async with gateway_of("a") as gateway:
        session, headers = await gateway.start()
        await gateway.chat(headers, [ASKED])
        body = json.dumps({"reward": reward})
        response = await gateway.client.post("/rl/set_reward", content=body, headers=headers)
        assert response.status_code == 400
        assert len(await gateway.export(session)) == 1


async def test_a_reward_for_an_unknown_completion_is_not_found() -> None:
    async with gateway_of("a") as gateway:
        _, headers = await gateway.start()
        for body in ({"reward": 1.0}, {"reward": 1.0, "interaction_id": "chatcmpl-x"}):
            response = await gateway.client.post("/rl/set_reward", json=body, headers=headers)
            assert response.status_code == 404


async def test_a_task_is_a_session_on_a_row_that_the_trainer_asked_for() -> None:
    async with gateway_of("3", agent={"mode": "online"}) as gateway:
        asked = {"size": 1, "oldest_version": 0, "task_id": "7", "data": {"messages": [ASKED], "answer": "2"}}
        group = asyncio.create_task(gateway.admin("/rl/next_group", asked))
        task = (await gateway.admin("/rl/next_task", {})).json()
        assert task["data"] == asked["data"]
        headers = bearer(task["api_key"])
        await gateway.chat(headers, task["data"]["messages"])
        await gateway.client.post("/rl/set_reward", json={"reward": 0.5}, headers=headers)
        await gateway.client.post("/rl/end_session", headers=headers)
        answer = (await group).json()
        assert answer["task_id"] == task["task_id"]
        assert [one["reward"] for session in answer["sessions"] for one in session["trajectories"]] == [0.5]
        assert (await gateway.admin("/rl/next_task", {"wait_seconds": 0})).status_code == 204


@pytest.mark.parametrize(
    ("mode", "key", "body", "status", "words"),
    [
        ("inline", ADMIN_KEY, {}, 409, "mode is not online"),
        ("online", "sk-something-else", {}, 403, "needs the admin key"),
        ("online", ADMIN_KEY, {"wait_seconds": 1e9}, 400, "wait_seconds is 1e+09; use 0 to 300"),
        ("online", ADMIN_KEY, {"wait_seconds": "long"}, 400, "wait_seconds"),
    ],
)
async def test_a_request_for_a_task_that_cannot_be_served_is_refused(
    mode: str, key: str, body: dict[str, Any], status: int, words: str
) -> None:
    async with gateway_of(agent={"mode": mode}) as gateway:
        response = await gateway.client.post("/rl/next_task", json=body, headers=bearer(key))
        assert response.status_code == status
        assert words in response.json()["error"]["message"]
