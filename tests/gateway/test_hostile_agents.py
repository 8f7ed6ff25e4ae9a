"""Agents that send anything at all, over sockets: clear errors in the protocol's form, bounded memory, nothing left."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from areal_trainer.gateway import sessions as gateway_sessions
from areal_trainer.gateway.http import MAX_BODY_BYTES
from support.gateway_app import ADMIN_KEY, Served, served

ROUTES = ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/rl/set_reward"]
ADMIN_ROUTES = ["/rl/start_session", "/export_trajectories"]
ASKED = [{"role": "user", "content": "1+1?"}]
FIELDS = [
    *("model", "messages", "input", "tools", "tool_choice", "n", "stop", "max_tokens", "stream", "response_format"),
    *("text", "system", "instructions", "previous_response_id", "top_logprobs", "logprobs", "stream_options"),
    *("output_config", "reward", "interaction_id", "temperature"),
]
KEYS = ["role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "tool_use_id", "id", "schema"]
WORDS = ["default", "user", "assistant", "tool", "system", "function", "text", "json_schema", "image", "required", ""]
LEAVES = st.one_of(
    st.sampled_from(WORDS),
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
VALUES = st.recursive(
    LEAVES,
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=4)), below, max_size=4),
    ),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("type", "text", "refusal", "name", "input", "content"), VALUES)
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer"])},
        optional={
            "content": st.one_of(VALUES, st.lists(PARTS, max_size=2)),
            "tool_calls": VALUES,
            "tool_call_id": VALUES,
            "name": VALUES,
        },
    ),
    max_size=4,
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("default")},
    optional={
        **{field: VALUES for field in FIELDS if field not in ("model", "messages", "input", "system", "max_tokens")},
        "messages": st.one_of(MESSAGES, VALUES),
        "input": st.one_of(MESSAGES, VALUES),
        "system": st.one_of(st.lists(PARTS, max_size=2), VALUES),
        "max_tokens": st.one_of(st.integers(1, 9), VALUES),
    },
)
AGENT = {"tool_call_parser": "qwen25", "constrained_decoding": "untrained", "max_calls": 1000}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    parsed = {"/parse_function_call": {"normal_text": "", "calls": []}}
    with served(agent=AGENT, parsed=parsed) as gateway:
        yield gateway


def check(response: httpx.Response, path: str) -> None:
    """The response is an answer, or an error in the form of the path's protocol."""
    assert response.status_code < 500, response.text
    if response.status_code == 200:
        return
    error = response.json()
    if "/messages" in path:
        assert error["type"] == "error"
    assert error["error"]["type"] in ("invalid_request_error", "not_found_error", "authentication_error")
    assert 0 < len(error["error"]["message"]) < 2000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ROUTES), BODIES)
def test_any_body_gets_an_answer_or_an_error_that_names_what_is_wrong(
    gateway: Served, path: str, body: dict[str, Any]
) -> None:
    gateway.engine.answers[:] = ["x"] * 64
    session, key = gateway.start()
    try:
        response = gateway.client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})
        check(response, path)
    finally:
        assert gateway.admin("/export_trajectories", {"session_id": session}).status_code == 200
    assert len(gateway.sessions) == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ADMIN_ROUTES), VALUES)
def test_any_body_of_the_administration_gets_an_error_or_a_session(gateway: Served, path: str, value: Any) -> None:
    bodies = [value, {"task_id": value}, {"api_key": value}, {"session_id": value}, {"timeout_seconds": value}]
    for body in bodies:
        response = gateway.admin(path, body)
        check(response, path)
        if response.status_code == 200 and "session_id" in response.json():
            gateway.admin("/export_trajectories", {"session_id": response.json()["session_id"]})
    assert len(gateway.sessions) == 0


RAW = [
    b"",
    b"\x00" * 100,
    b"GET",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: nine\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /v1/models HTTP/1.1\r\nX: " + b"a" * (1 << 20),
    b"GET / HTTP/9.9\r\n\r\n",
]


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
def test_what_is_no_http_is_refused_or_closed(gateway: Served, raw: bytes) -> None:
    with socket.create_connection(gateway.address, timeout=60.0) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        except OSError:  # the gateway closed the connection
            answer = b""
    assert answer == b"" or answer.split(b" ")[1] in (b"400", b"401", b"404", b"431", b"505")
    assert gateway.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"model": "default", "messages": "\\ud800"}',
        b'{"model": "default", "n": ' + b"9" * 5000 + b"}",
        b"5",
    ],
    ids=range(7),
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_what_is_no_json_object_is_a_bad_request(gateway: Served, path: str, body: bytes) -> None:
    _, key = gateway.start()
    response = gateway.client.post(path, content=body, headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 400
    check(response, path)


def test_a_body_that_grows_without_end_is_cut_off(gateway: Served) -> None:
    _, key = gateway.start()
    sent = 0

    def forever() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield b" " * (1 << 20)

    try:
        response = gateway.client.post("/v1/chat/completions", content=forever(), headers={"x-api-key": key})
        assert response.status_code == 413
    except httpx.TransportError:  # the connection was closed while the client was sending
        pass
    assert sent < 8 * MAX_BODY_BYTES


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("key", [None, "sk-of-nobody-at-all", ADMIN_KEY, "é"])
def test_a_key_that_belongs_to_no_session_is_refused_before_the_body_is_read(
    gateway: Served, path: str, key: str | None
) -> None:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {MAX_BODY_BYTES}"]
    lines += [] if key is None else [f"Authorization: Bearer {key}"]
    with socket.create_connection(gateway.address, timeout=60.0) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = connection.recv(65536)
    assert b" 401 " in answer.split(b"\r\n", 1)[0]


def test_a_flood_of_calls_is_refused_and_the_others_are_answered() -> None:
    limits = {"max_calls": 20, "max_concurrent_calls": 4}
    with served(*["x"] * 1000, agent=limits) as gateway:
        _, flooding = gateway.start()
        session, calm = gateway.start()

        async def call(client: httpx.AsyncClient, key: str) -> int:
            body = {"model": "default", "messages": ASKED}
            response = await client.post("/v1/chat/completions", json=body, headers={"x-api-key": key})
            return response.status_code

        async def flood() -> tuple[list[int], int]:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60.0) as client:
                statuses = asyncio.gather(*(call(client, flooding) for _ in range(80)))
                return list(await statuses), await call(client, calm)

        statuses, other = asyncio.run(flood())
        assert other == 200
        assert statuses.count(200) <= 20
        assert set(statuses) == {200, 429}
        assert gateway.sessions.counters.refused == statuses.count(429)
        assert len(gateway.admin("/export_trajectories", {"session_id": session}).json()["trajectories"]) == 1


def test_a_session_that_holds_too_much_is_refused_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_sessions, "MAX_SESSION_BYTES", 2000)
    monkeypatch.setattr(gateway_sessions, "MAX_BYTES", 3000)
    with served(*["x"] * 10, agent={"max_calls": 100}) as gateway:
        session, key = gateway.start()
        headers = {"x-api-key": key}
        body = {"model": "default", "messages": [{"role": "user", "content": "y" * 40}]}
        statuses = [
            gateway.client.post("/v1/chat/completions", json=body, headers=headers).status_code for _ in range(3)
        ]
        assert statuses == [200, 429, 429]
        assert gateway.admin("/rl/start_session", {}).status_code == 429
        gateway.admin("/export_trajectories", {"session_id": session})
        assert gateway.admin("/rl/start_session", {}).status_code == 200


def test_a_client_that_hangs_up_leaves_no_call_behind() -> None:
    hold = asyncio.Event()
    with served("x", hold=hold) as gateway:
        session, key = gateway.start()
        request = json.dumps({"model": "default", "messages": ASKED}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\n"
        head += f"Content-Length: {len(request)}\r\n\r\n"
        for _ in range(20):
            with socket.create_connection(gateway.address, timeout=60.0) as connection:
                connection.sendall(head.encode() + request)
        opened = gateway.sessions.by_id(session)
        gone = threading.Event()
        for _ in range(6000):
            if opened.calls and not opened.running:
                break
            gone.wait(0.01)
        assert opened.running == 0
        assert gateway.admin("/export_trajectories", {"session_id": session}).json()["trajectories"] == []


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/rl/start_session"])
def test_a_client_that_hangs_up_within_its_body_is_no_failure_of_the_gateway(route: str) -> None:
    with served() as gateway:
        key = ADMIN_KEY if route.startswith("/rl/") else gateway.start()[1]
        head = f"POST {route} HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\nContent-Length: 100\r\n\r\n{{"
        with socket.create_connection(gateway.address, timeout=60.0) as connection:
            connection.sendall(head.encode())
            assert gateway.client.get("/health").status_code == 200  # the gateway has read the head
        waited = threading.Event()
        for _ in range(6000):
            if gateway.sessions.counters.refused:
                break
            waited.wait(0.01)
        assert (gateway.sessions.counters.refused, gateway.sessions.counters.failed) == (1, 0)


def test_an_expired_session_and_an_unknown_model_are_refused_in_the_protocol_s_form() -> None:
    times = [0.0]
    with served(agent={"session_timeout_seconds": 5.0}, clock=lambda: times[0]) as gateway:
        _, key = gateway.start()
        bodies = {"/v1/chat/completions": {"messages": ASKED}, "/v1/messages": {"messages": ASKED, "max_tokens": 5}}
        for path, body in bodies.items():
            response = gateway.client.post(path, json={"model": "gpt-9", **body}, headers={"x-api-key": key})
            assert response.status_code == 404
            assert "use 'default'" in response.json()["error"]["message"]
        times[0] = 6.0
        response = gateway.client.post("/v1/messages", json={}, headers={"x-api-key": key})
        assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
        assert gateway.sessions.counters.expired == 1
