"""Random conversations through the gateway's process: every trained token is one that a server generated.

The servers' log is recorded by a proxy. For every trained token, it must contain that token after exactly the tokens
before it, with that log-prob and that weight version.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from areal_api.agent_config import AgentConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.gateway.settings import GatewaySettings, new_key
from areal_trainer.rollout.gateway_process import GatewayProcess
from support.engines import engine_on
from support.faulty_proxy import FaultyProxy
from support.real_server import real_server
from support.scripted_server import Fault, Script, ScriptedServer

MODEL = Path(__file__).parents[2] / "examples/tiny/model"
VOCABULARY, CONTEXT = 256, 128
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
WORDS = ["Tom has 4 jars", "3 + 4 = 7", "How many keys does Tom have ?", "sells 2", "Lou buys 8 coins"]


@dataclass(frozen=True)
class Step:
    """One or more calls. ``base`` selects an earlier answer (modulo their number) whose history is used."""

    kind: str  # new, continue, parallel, retry, edit_answer, edit_question, shorten
    base: int
    words: int
    n: int = 1


KINDS = ["new", *["continue"] * 3, "parallel", "retry", "edit_answer", "edit_question", "shorten"]
STEP = st.builds(
    Step, st.sampled_from(KINDS), st.integers(0, 7), st.integers(0, len(WORDS) - 1), st.sampled_from([1, 1, 1, 2, 3])
)
STEPS = st.lists(STEP, min_size=1, max_size=8)


@dataclass
class Answer:
    """An answer as the agent saw it, and the history that led to it."""

    id: str
    history: list[dict[str, Any]]
    text: str
    continues: Answer | None  # the answer whose tokens its prompt must start with


@dataclass
class Chain:
    """Gateway process, engine, recording proxy and server."""

    gateway: GatewayProcess
    proxy: FaultyProxy
    url: str
    server: ScriptedServer | None
    generated: dict[tuple[int, ...], set[tuple[int, float, int]]] = field(default_factory=dict)

    def read_log(self) -> None:
        """Add the proxy's exchanges to ``generated``: what followed each sequence of tokens."""
        for exchange in self.proxy.exchanges:
            if exchange.path != "/generate" or exchange.status != 200:
                continue
            prompt = json.loads(exchange.request)["input_ids"]
            answers = json.loads(exchange.answer)
            for answer in answers if isinstance(answers, list) else [answers]:
                tokens = list(prompt)
                for logprob, token, *_ in answer["meta_info"].get("output_token_logprobs") or []:
                    self.generated.setdefault(tuple(tokens), set()).add((token, logprob, 0))
                    tokens.append(token)
        self.proxy.exchanges.clear()


@contextmanager
def chain_on(port: int, server: ScriptedServer | None) -> Iterator[Chain]:
    gconfig = GenerationHyperparameters(max_new_tokens=6, max_tokens=CONTEXT - 8, stop_token_ids=[1])
    settings = GatewaySettings(
        tokenizer=str(MODEL),
        model="tiny",
        gconfig=gconfig,
        eval_gconfig=gconfig,
        agent=AgentConfig(tool_call_parser="qwen25"),
        admin_key=new_key(),
    )
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultyProxy(port))
        engine = stack.enter_context(engine_on(f"127.0.0.1:{proxy.port}", vocab_size=VOCABULARY, setup_timeout=120.0))
        gateway = GatewayProcess(engine, settings)
        stack.callback(gateway.close)
        yield Chain(gateway, proxy, asyncio.run(gateway.url()), server)


@pytest.fixture(scope="module")
def scripted() -> Iterator[Chain]:
    script = Script(vocab_size=VOCABULARY, context_length=CONTEXT, stop_probability=0.15)
    with ScriptedServer(script) as server, chain_on(server.port, server) as chain:
        yield chain


class Session:
    """An agent's side of one session."""

    def __init__(self, chain: Chain, client: httpx.AsyncClient) -> None:
        self.chain = chain
        self.client = client
        self.answers: list[Answer] = []
        self.headers: dict[str, str] = {}
        self.id = ""
        self.tokens = 0  # generated for this session

    async def admin(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self.chain.gateway.admin_key}"}
        response = await self.client.post(path, json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    async def export(self, style: str) -> list[dict[str, Any]]:
        exported = await self.admin("/export_trajectories", {"session_id": self.id, "style": style})
        samples: list[dict[str, Any]] = exported["trajectories"]
        return samples

    async def play(self, steps: list[Step]) -> None:
        opened = await self.admin("/rl/start_session", {"task_id": "t"})
        self.id, self.headers = opened["session_id"], {"Authorization": f"Bearer {opened['api_key']}"}
        for step in steps:
            await self.take(step)

    async def take(self, step: Step) -> None:
        question = {"role": "user", "content": WORDS[step.words]}
        if step.kind == "new" or not self.answers:
            await self.ask([question], None, step.n)
            return
        base = self.answers[step.base % len(self.answers)]
        copy = {"role": "assistant", "content": [{"type": "text", "text": base.text + " "}]}
        if step.kind == "continue":
            await self.ask([*base.history, copy, question], base, step.n)
        elif step.kind == "parallel":
            calls = [self.ask([*base.history, copy, question | {"content": word}], base) for word in WORDS[:3]]
            await asyncio.gather(*calls)
        elif step.kind == "retry":
            await self.ask(base.history, base.continues, step.n)
        elif step.kind == "edit_answer":
            await self.ask([*base.history, copy | {"content": "5 - 3 = 2 edited"}, question], base.continues, step.n)
        elif step.kind == "edit_question":
            await self.ask([question, *base.history[1:], copy, question], None, step.n, may_match=True)
        else:
            await self.ask([*base.history[-1:]], None, step.n, may_match=True)

    async def ask(
        self, history: list[dict[str, Any]], continues: Answer | None, n: int = 1, *, may_match: bool = False
    ) -> None:
        """``may_match``: the history may happen to continue some answer all the same."""
        body = {"model": "default", "messages": history, "n": n}
        response = await self.client.post("/v1/chat/completions", json=body, headers=self.headers)
        if response.status_code == 400:
            assert response.json()["error"]["code"] == "context_length_exceeded", response.text
            return
        assert response.status_code == 200, response.text
        completion = response.json()
        self.tokens += completion["usage"]["completion_tokens"]
        for choice in completion["choices"]:
            name = completion["id"] + (f"-{choice['index']}" if choice["index"] else "")
            known = continues if not may_match else None
            self.answers.append(Answer(name, history, choice["message"]["content"], known))


async def check(chain: Chain, steps: list[Step]) -> None:
    async with httpx.AsyncClient(base_url=chain.url, timeout=120.0) as client:
        individual, concat = Session(chain, client), Session(chain, client)
        for session in (individual, concat):
            await session.play(steps)
        samples, leaves = await individual.export("individual"), await concat.export("concat")
    chain.read_log()
    for sample in [*samples, *leaves]:
        assert_generated(chain, sample)
    by_id = {sample["interaction_id"]: sample["input_ids"] for sample in samples}
    assert sorted(by_id) == sorted(answer.id for answer in individual.answers)
    for answer in individual.answers:
        if (base := answer.continues) is not None:
            # Calls with the same history may have got the same text; the prompt continues one of their answers.
            same = [one for one in individual.answers if (one.history, one.text) == (base.history, base.text)]
            assert any(by_id[answer.id][: len(by_id[one.id])] == by_id[one.id] for one in same)
    assert sum(sum(sample["loss_mask"]) for sample in samples) == individual.tokens
    assert sum(sum(leaf["loss_mask"]) for leaf in leaves) == concat.tokens


def assert_generated(chain: Chain, sample: dict[str, Any]) -> None:
    ids = sample["input_ids"]
    for position, trained in enumerate(sample["loss_mask"]):
        if trained:
            entry = (ids[position], sample["logprobs"][position], sample["versions"][position])
            assert entry in chain.generated[tuple(ids[:position])]
        else:
            assert (sample["logprobs"][position], sample["versions"][position]) == (0.0, -1)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS)
def test_trained_tokens_are_those_that_the_server_generated(scripted: Chain, steps: list[Step]) -> None:
    asyncio.run(check(scripted, steps))


@pytest.mark.parametrize("kind", ["abort", "cut", "half"])
def test_tokens_of_interrupted_and_repeated_requests_are_exact_too(scripted: Chain, kind: Any) -> None:
    assert scripted.server is not None
    scripted.server.add_faults(Fault(kind, skip=1, times=1), Fault(kind, skip=2, times=1))
    steps = [Step("new", 0, 0), Step("continue", 0, 1), Step("parallel", 0, 2), Step("continue", 2, 3)]
    asyncio.run(check(scripted, steps))


@pytest.mark.real
def test_trained_tokens_are_those_that_a_real_server_generated(tmp_path: Path) -> None:
    with real_server(tmp_path, MODEL) as server, chain_on(int(server.address.rpartition(":")[2]), None) as chain:

        @settings(max_examples=4, database=None)
        @given(steps=STEPS)
        def examples(steps: list[Step]) -> None:
            asyncio.run(check(chain, steps))

        examples()
        asyncio.run(check_tools(chain))


async def check_tools(chain: Chain) -> None:
    """The real server's parser is asked, and an answer without a call is left as it is."""
    async with httpx.AsyncClient(base_url=chain.url, timeout=120.0) as client:
        session = Session(chain, client)
        await session.play([])
        body = {"model": "default", "messages": [{"role": "user", "content": WORDS[0]}], "tools": [TOOL]}
        response = await client.post("/v1/chat/completions", json=body, headers=session.headers)
        assert response.status_code == 200, response.text
        assert "tool_calls" not in response.json()["choices"][0]["message"]
