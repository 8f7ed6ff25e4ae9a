"""Prefix caches of two real servers: the share of prompt tokens found there when conversations keep their server."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from areal_api import stat_names
from areal_api.agent_config import AgentConfig
from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest, ModelResponse, RemoteSGLangEngine
from areal_trainer.gateway.settings import GatewaySettings, new_key
from areal_trainer.rollout.agent_workflow import AgentRunner, AgentWorkflow
from areal_trainer.rollout.gateway_process import GatewayProcess
from areal_trainer.trajectory import Trajectory
from benchmarks.measure import Comparison, by_turns
from benchmarks.models import save_qwen3, word_tokenizer
from benchmarks.servers import configured_server

SERVERS = 2
CONVERSATIONS = 64
CONCURRENT = 16
TURNS = 6
INSTRUCTION_TOKENS, QUESTION_TOKENS, NEW_TOKENS = 100, 30, 32
TOOL_S = 0.2  # the longest time between two calls; otherwise turns at the servers decide where conversations go
VOCABULARY = 256
WORDS = [f"w{number}" for number in range(20, 100)]  # the tokenizer would find its special token w1 in w10
LONGEST_S = 300.0
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


class Talker:
    """Asks ``TURNS`` questions after instructions that all conversations share."""

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        """The reward is of no interest."""
        words = random.Random(data["seed"])
        client: httpx.AsyncClient = extra_kwargs["http_client"]
        headers = {"Authorization": f"Bearer {extra_kwargs['api_key']}"}
        messages = [{"role": "system", "content": _text(random.Random(0), INSTRUCTION_TOKENS)}]
        for _ in range(TURNS):
            messages.append({"role": "user", "content": _text(words, QUESTION_TOKENS)})
            body = {"model": "default", "messages": messages}
            response = await client.post(f"{extra_kwargs['base_url']}/chat/completions", json=body, headers=headers)
            messages.append(response.raise_for_status().json()["choices"][0]["message"])
            await asyncio.sleep(words.uniform(0.0, TOOL_S))
        return 1.0


class EngineWithoutAffinity(RemoteSGLangEngine):
    """Every request goes to the least loaded server."""

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """``n`` completions of one prompt."""
        return await super().agenerate_n(replace(request, conversation=None), n)


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Shares in percent, beside those that are possible and those without affinity."""
    conversations = 4 if small else CONVERSATIONS
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder)
        save_qwen3(path / "model", layers=4, hidden=128, vocabulary=VOCABULARY)
        tokenizer = word_tokenizer(VOCABULARY)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(path / "tokenizer")
        servers = [
            stack.enter_context(configured_server(path, path / "model", number, dtype="float32"))
            for number in range(SERVERS)
        ]
        possible: list[float] = []
        seconds: dict[type[RemoteSGLangEngine], list[float]] = {RemoteSGLangEngine: [], EngineWithoutAffinity: []}

        def side(kind: type[RemoteSGLangEngine]) -> float:
            began = time.perf_counter()
            found, of = _shares(kind, servers, path / "tokenizer", conversations, seed=len(possible))
            seconds[kind].append(time.perf_counter() - began)
            possible.append(of)
            return found

        ours, without = by_turns(
            lambda: side(RemoteSGLangEngine), lambda: side(EngineWithoutAffinity), rounds=rounds, warm_up=False
        )
    work = (
        f"{conversations} conversations of {TURNS} calls, {min(CONCURRENT, conversations)} at a time, on {SERVERS} "
        f"servers; {INSTRUCTION_TOKENS} tokens of shared instructions, then questions of {QUESTION_TOKENS} and answers "
        f"of at most {NEW_TOKENS} tokens, up to {TOOL_S} s apart"
    )
    median = {kind: sorted(values)[len(values) // 2] for kind, values in seconds.items()}
    note = f"{median[RemoteSGLangEngine]:.1f} s a round, {median[EngineWithoutAffinity]:.1f} s without affinity"
    unit, bound = "% of prompt tokens", [sum(possible) / len(possible)] * rounds
    return [
        Comparison("affinity", work, unit, ours, "repeated tokens, the most possible", bound, goal=0.9, notes=[note]),
        Comparison("affinity", work, unit, ours, "requests to the least loaded server", without),
    ]


def repeated_share(conversations: Iterable[list[Trajectory]], *, shared: int) -> float:
    """Percentage of prompt tokens that an earlier call has processed, or the conversation before.

    Each conversation is its calls in order. All of them begin with the same ``shared`` tokens.
    """
    repeated = total = 0
    for calls in conversations:
        before = shared
        for call in calls:
            repeated += before
            total += call.prompt_len
            before = len(call)
    return 100 * repeated / total


def _shares(
    kind: type[RemoteSGLangEngine], servers: list[str], tokenizer: Path, conversations: int, *, seed: int
) -> tuple[float, float]:
    """Percentages of the prompt tokens of new conversations: found in the caches, and repeated."""
    gconfig = GenerationHyperparameters(max_new_tokens=NEW_TOKENS, max_tokens=2048)
    settings = GatewaySettings(
        tokenizer=str(tokenizer),
        model="random",
        gconfig=gconfig,
        eval_gconfig=gconfig,
        agent=AgentConfig(),
        admin_key=new_key(),
    )
    rows = [{"seed": f"{seed}.{number}"} for number in range(conversations)]
    config = RolloutConfig(max_concurrent_rollouts=CONCURRENT, setup_timeout=LONGEST_S)
    engine = kind(config, batch_size=conversations)
    engine.initialize(servers, vocab_size=VOCABULARY)
    gateway = GatewayProcess(engine, settings)
    runner = AgentRunner(gateway, timeout_s=LONGEST_S)
    try:
        calls = engine.rollout_batch(rows, AgentWorkflow(Talker(), runner, n_samples=1, evaluation=False))
        found = 100 * engine.statistics[stat_names.CACHE_HIT_RATE]
    finally:
        runner.close()
        gateway.close()
        engine.destroy()
    assert len(calls) == conversations * TURNS
    assert calls[0].prompt_len == INSTRUCTION_TOKENS + QUESTION_TOKENS
    in_order = [calls[start : start + TURNS] for start in range(0, len(calls), TURNS)]
    return found, repeated_share(in_order, shared=INSTRUCTION_TOKENS)


def _text(words: random.Random, count: int) -> str:
    return " ".join(words.choice(WORDS) for _ in range(count))
