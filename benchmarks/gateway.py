"""The session gateway: calls of concurrent agents through it, and the same tokens from the server directly."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp

from areal_api.agent_config import AgentConfig
from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.gateway.settings import GatewaySettings, new_key
from areal_trainer.rollout.gateway_process import GatewayProcess
from benchmarks.measure import Comparison, by_turns
from benchmarks.scripted import REPOSITORY, scripted_server

MODEL = REPOSITORY / "examples/tiny/model"
SESSIONS = 64
TURNS = 4
NEW_TOKENS = 20
WARM_UP = 8  # sessions before the measurement of sessions per second
QUESTION = {"role": "user", "content": "Tom has 4 jars of 3 keys. How many keys does Tom have?"}


class Client:
    """Makes the calls and records their durations."""

    def __init__(self, http: aiohttp.ClientSession, seconds: list[float]) -> None:
        self._http = http
        self._seconds = seconds

    async def post(self, url: str, body: dict[str, Any], *, key: str = "none", timed: bool = True) -> Any:
        """The decoded answer."""
        began = time.perf_counter()
        async with self._http.post(url, json=body, headers={"Authorization": f"Bearer {key}"}) as response:
            answer = await response.json()
        assert response.status == 200, answer
        if timed:
            self._seconds.append(time.perf_counter() - began)
        return answer

    async def session(self, url: str, admin_key: str) -> None:
        """A conversation of ``TURNS`` calls through the gateway."""
        opened = await self.post(f"{url}/rl/start_session", {}, key=admin_key, timed=False)
        messages: list[dict[str, Any]] = [QUESTION]
        for _ in range(TURNS):
            body = {"model": "default", "messages": messages}
            answer = await self.post(f"{url}/v1/chat/completions", body, key=opened["api_key"])
            messages = [*messages, answer["choices"][0]["message"], QUESTION]
        export = {"session_id": opened["session_id"], "rewards": 1.0}
        await self.post(f"{url}/export_trajectories", export, key=admin_key, timed=False)

    async def direct(self, address: str) -> None:
        """A conversation of as many tokens on the server itself."""
        input_ids = list(range(2, 22))
        for _ in range(TURNS):
            body = {"input_ids": input_ids, "sampling_params": {"max_new_tokens": NEW_TOKENS}, "return_logprob": True}
            answer = await self.post(f"http://{address}/generate", body)
            input_ids = [*input_ids, *(entry[1] for entry in answer["meta_info"]["output_token_logprobs"]), *range(20)]


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Calls per second of both and the durations of a call; sessions per second with a server that answers at once."""
    sessions, conversations, answer_s = (4, 4, 0.01) if small else (SESSIONS, 2 * SESSIONS, 0.5)
    through: list[float] = []
    direct: list[float] = []
    with gateway_of(answer_s) as (gateway, url, address):

        def ours() -> float:
            work = _rate(
                sessions, conversations, answer_s, through, lambda client: client.session(url, gateway.admin_key)
            )
            return TURNS * work

        def baseline() -> float:
            return TURNS * _rate(sessions, conversations, answer_s, direct, lambda client: client.direct(address))

        rates = by_turns(ours, baseline, rounds=rounds)
    alone: list[float] = []
    alone_direct: list[float] = []
    with gateway_of(0.0) as (gateway, url, address):

        def at_once(count: int, *, concurrent: int, seconds: list[float]) -> float:
            return _rate(concurrent, count, 0.0, seconds, lambda client: client.session(url, gateway.admin_key))

        at_once(WARM_UP, concurrent=sessions, seconds=[])
        sessions_s = at_once(2 * conversations, concurrent=sessions, seconds=[])
        at_once(conversations, concurrent=1, seconds=alone)
        _rate(1, conversations, 0.0, alone_direct, lambda client: client.direct(address))
    work = (
        f"{conversations} conversations of {TURNS} calls, {sessions} at a time, which start within {answer_s} s; "
        f"{NEW_TOKENS} tokens in {answer_s} s"
    )
    notes = [
        f"a call: {_beside(through, direct)}",
        f"one conversation at a time, with a server that answers at once: {_beside(alone, alone_direct)}",
        f"with a server that answers at once: {sessions_s:.1f} sessions/s, {TURNS * sessions_s:.0f} calls/s",
    ]
    return [Comparison("gateway", work, "calls/s", rates[0], "the server's /generate", rates[1], goal=0.9, notes=notes)]


@contextmanager
def gateway_of(answer_s: float) -> Iterator[tuple[GatewayProcess, str, str]]:
    """A gateway, its URL, and the address of the scripted server behind it, which answers in ``answer_s``."""
    gconfig = GenerationHyperparameters(max_new_tokens=NEW_TOKENS, max_tokens=2048)
    settings = GatewaySettings(
        tokenizer=str(MODEL),
        model="tiny",
        gconfig=gconfig,
        eval_gconfig=gconfig,
        agent=AgentConfig(),
        admin_key=new_key(),
    )
    script = {"answer": "benchmarks.scripted:fixed_answer", "token_s": answer_s / NEW_TOKENS}
    with scripted_server(vocab_size=256, **script) as address:
        engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=1))
        engine.initialize([address], vocab_size=256)
        gateway = GatewayProcess(engine, settings)
        try:
            yield gateway, asyncio.run(gateway.url()), address
        finally:
            gateway.close()
            engine.destroy()


def _rate(
    sessions: int,
    conversations: int,
    answer_s: float,
    seconds: list[float],
    converse: Callable[[Client], Coroutine[Any, Any, None]],
) -> float:
    """Conversations per second. The first ``sessions`` start one after the other, so calls do not come in bursts."""

    async def measure() -> float:
        slots = asyncio.Semaphore(sessions)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            client = Client(http, seconds)

            async def one(number: int) -> None:
                async with slots:
                    if number < sessions:
                        await asyncio.sleep(answer_s * number / sessions)
                    await converse(client)

            began = time.perf_counter()
            await asyncio.gather(*(one(number) for number in range(conversations)))
            return conversations / (time.perf_counter() - began)

    return asyncio.run(measure())


def _beside(through: list[float], direct: list[float]) -> str:
    more_ms = 1000 * (statistics.median(through) - statistics.median(direct))
    return f"{_durations(through)} through the gateway, {_durations(direct)} directly; +{more_ms:.1f} ms"


def _durations(seconds: list[float]) -> str:
    p99 = statistics.quantiles(seconds, n=100)[98]
    return f"median {1000 * statistics.median(seconds):.1f} ms, p99 {1000 * p99:.1f} ms"
