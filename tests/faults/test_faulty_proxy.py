"""The proxy forwards and records answers and injects the requested faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.faulty_proxy import BadAnswers, FaultyProxy
from support.scripted_server import Script, ScriptedServer

REQUEST = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 9, "ignore_eos": True}, "return_logprob": True}


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    with ScriptedServer(Script()) as server, FaultyProxy(server.port) as between:
        yield between


def ask(proxy: FaultyProxy, path: str = "/generate", **settings: float) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{proxy.port}{path}", json=REQUEST, timeout=5.0, **settings)


def test_an_answer_is_forwarded_and_recorded_with_its_request(proxy: FaultyProxy) -> None:
    answer = ask(proxy)
    (exchange,) = proxy.exchanges
    assert len(answer.json()["output_ids"]) == 9
    assert (exchange.path, exchange.status) == ("/generate", 200)
    assert json.loads(exchange.request) == REQUEST
    assert exchange.answer == answer.content
    assert exchange.delivered is not None


def test_only_the_requested_number_of_answers_is_cut(proxy: FaultyProxy) -> None:
    bad = BadAnswers("cut", "/generate", 2)
    proxy.bad.append(bad)
    assert ask(proxy, "/flush_cache").status_code == 200
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError):
            ask(proxy)
    assert ask(proxy).status_code == 200
    assert bad.injected == 2
    assert [exchange.delivered is None for exchange in proxy.exchanges] == [False, True, True, False]


def test_a_half_answer_ends_in_the_middle_of_its_body(proxy: FaultyProxy) -> None:
    proxy.bad.append(BadAnswers("half", "", 1))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        ask(proxy)
    assert ask(proxy).status_code == 200


def test_a_slow_answer_is_delayed(proxy: FaultyProxy) -> None:
    proxy.bad.append(BadAnswers("slow", "", 1, delay_s=0.4))
    started = time.monotonic()
    assert ask(proxy).status_code == 200
    assert time.monotonic() - started >= 0.4


def test_open_connections_are_cut_at_once() -> None:
    asked = threading.Event()
    with (
        ScriptedServer(Script(latency_s=30.0)) as server,
        FaultyProxy(server.port, on_request=lambda exchange: asked.set()) as proxy,
        ThreadPoolExecutor(1) as threads,
    ):
        answer = threads.submit(ask, proxy)
        assert asked.wait(5.0)
        assert proxy.cut_now() == 1
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            answer.result()


def test_a_client_that_hangs_up_is_disconnected_from_the_server() -> None:
    with ScriptedServer(Script(latency_s=30.0)) as server, FaultyProxy(server.port) as proxy:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"http://127.0.0.1:{proxy.port}/generate", json=REQUEST, timeout=0.3)
        deadline = time.monotonic() + 10.0
        while proxy.open_connections or not proxy.exchanges:
            assert time.monotonic() < deadline, "the proxy keeps the connection of a client that has hung up"
            time.sleep(0.01)
        assert proxy.exchanges[0].status == 0


def test_a_dead_server_refuses_connections() -> None:
    with ScriptedServer(Script()) as server, FaultyProxy(server.port) as proxy:
        server.kill()
        with pytest.raises(httpx.TransportError):
            ask(proxy)
