"""A language model as a reward, against a real endpoint."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from areal_api.data_config import JudgeConfig
from areal_trainer.reward import judge as module
from areal_trainer.reward.function import RewardError
from areal_trainer.reward.judge import Judge, rendered
from support.judge_server import judging


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)


def judge(url: str, *, state: Path | None = None, **settings: Any) -> Judge:
    return Judge(JudgeConfig(url=url, model="a-judge", **settings), name="helpful", state=state)


async def score(judge: Judge, completion: str, **columns: Any) -> float:
    return await judge.score("2+2=", completion, [1], [2], **{"answer": "4", "task_id": "t7", **columns})


def sequence(*answers: str | web.Response) -> Callable[[dict[str, Any]], str | web.Response]:
    remaining = list(answers)
    return lambda body: remaining.pop(0)


async def test_the_last_score_becomes_a_reward_between_0_and_1() -> None:
    async with judging(lambda body: "Score: 0 at first, but it is right.\nScore: **8**") as server:
        one = judge(server.url)
        assert await score(one, "four") == 0.8
        await one.close()
    (request,) = server.requests
    assert (request["model"], request["temperature"]) == ("a-judge", 0.0)
    text = request["messages"][0]["content"]
    assert all(part in text for part in ("Problem:\n2+2=", "Reference answer:\n4", "Answer:\nfour"))


async def test_equal_judgements_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with judging(lambda body: "Score: 5") as server:
        one = judge(server.url, cache_size=2)
        assert await asyncio.gather(*(score(one, "same") for _ in range(10))) == [0.5] * 10
        assert await score(one, "same") == 0.5
        assert len(server.requests) == 1
        for completion in ("a", "b", "same"):  # the cache keeps two
            await score(one, completion)
        await one.close()
    assert len(server.requests) == 4
    assert (one.usage.requests, one.usage.cached) == (4, 10)


async def test_faults_are_retried_and_a_fault_is_no_reward() -> None:
    busy = web.Response(status=429, text="slow down", headers={"Retry-After": "0"})
    async with judging(sequence(busy, web.Response(status=503), "no idea", "Score: 11", "Score: 10")) as server:
        one = judge(server.url, retries=4)
        assert await score(one, "x") == 1.0
        await one.close()
    async with judging(lambda body: "I refuse") as server:
        one = judge(server.url, retries=2)
        with pytest.raises(RewardError, match=r"sample t7: term 'helpful': 3 attempts failed.*no score in 'I refuse'"):
            await score(one, "x")
        await one.close()
    assert (len(server.requests), one.usage.failed) == (3, 1)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (web.Response(status=401, text="who are you"), "HTTP status 401: who are you"),
        (web.Response(status=302, headers={"Location": "http://169.254.169.254/"}), "HTTP status 302"),
    ],
)
async def test_what_another_attempt_cannot_change_is_not_repeated(response: web.Response, message: str) -> None:
    async with judging(lambda body: response) as server:
        one = judge(server.url)
        with pytest.raises(RewardError, match=message):
            await score(one, "x")
        await one.close()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[" * 100_000, b"x" * 2**21]
)
async def test_an_answer_that_is_none_is_an_error(body: bytes) -> None:
    async with judging(lambda _: web.Response(body=body)) as server:
        one = judge(server.url, retries=0)
        with pytest.raises(RewardError, match="1 attempts failed"):
            await score(one, "x")
        await one.close()


async def test_an_endpoint_that_hangs_has_a_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel accepts connections, and nobody answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        one = judge(url, request_timeout=0.05, deadline=0.3, retries=100)
        with pytest.raises(RewardError, match=r"within deadline = 0\.3 s; last: no answer within request_timeout"):
            await score(one, "x")
        await one.close()


async def test_the_cost_is_limited_also_after_a_restart(tmp_path: Path) -> None:
    state = tmp_path / "judge-helpful.json"
    prices = {"input_price": 10.0, "output_price": 50.0, "max_cost": 0.03}  # 0.015 for an answer
    async with judging(lambda body: "Score: 1") as server:
        one = judge(server.url, state=state, **prices)
        assert [await score(one, text) for text in "ab"] == [0.1, 0.1]
        with pytest.raises(RewardError, match=r"has cost 0\.03 in this run, and max_cost is 0\.03; raise it"):
            await score(one, "c")
        assert await score(one, "a") == 0.1  # from the cache
        await one.close()
        assert json.loads(state.read_text())["cost"] == pytest.approx(0.03)
        again = judge(server.url, state=state, **prices)
        with pytest.raises(RewardError, match="max_cost"):
            await score(again, "d")
    assert len(server.requests) == 2
    state.write_text("{")
    with pytest.raises(ValueError, match="is damaged; remove it"):
        judge(server.url, state=state)


async def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="takes its API key from JUDGE_KEY, which is not set"):
        judge("http://127.0.0.1/v1", api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    async with judging(lambda body: "Score: 1") as server:
        one = judge(server.url, api_key_env="JUDGE_KEY")
        await score(one, "x")
        await one.close()
    assert server.keys == ["Bearer secret"]


def test_text_of_a_completion_is_not_a_template() -> None:
    values = {"prompt": "{answer}", "completion": "{prompt} {0} {x.y}", "answer": 4}
    assert rendered(r"\boxed{} {completion}|{prompt}|{answer}", values) == r"\boxed{} {prompt} {0} {x.y}|{answer}|4"
    with pytest.raises(ValueError, match=r"has \{anwser\}, but the row has no such column; its columns are: answer"):
        rendered("{anwser}", values)
