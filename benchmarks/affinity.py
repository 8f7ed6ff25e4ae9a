"""Prefix caches: the share of prompt tokens that servers find in them when conversations keep their server."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from areal_api import stat_names
from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest, RemoteSGLangEngine
from areal_trainer.rollout.workflow import GenerationEngine, RolloutWorkflow
from areal_trainer.trajectory import Trajectory
from benchmarks.measure import Comparison, by_turns
from benchmarks.models import save_qwen3
from benchmarks.scripted import scripted_server
from benchmarks.servers import configured_server

SCRIPTED_SERVERS = (2, 4)
REAL_SERVERS = 2
CONVERSATIONS = 128
CONCURRENT = 32
TURNS = 6
INSTRUCTION_TOKENS, QUESTION_TOKENS, NEW_TOKENS = 100, 30, 32
VOCABULARY = 512
TOOL_S = 0.2  # the longest time between two calls; otherwise turns at the servers decide where conversations go
CACHE_TOKENS = 131_072  # of a real server: more than the conversations of one side have
SCRIPT = {"vocab_size": VOCABULARY, "prefix_cache": True, "token_s": 0.005, "tail_sigma": 0.5}


class Conversation(RolloutWorkflow):
    """Asks ``TURNS`` questions after instructions that all conversations share; a sample is a call."""

    def __init__(self, *, affinity: bool) -> None:
        self._affinity = affinity

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory]:
        """The calls in their order."""
        name = data["name"]
        drawn = random.Random(name)
        tokens = _tokens(random.Random(0), INSTRUCTION_TOKENS)
        gconfig = GenerationHyperparameters(max_new_tokens=NEW_TOKENS, max_tokens=2048)
        calls = []
        for _ in range(TURNS):
            tokens = [*tokens, *_tokens(drawn, QUESTION_TOKENS)]
            request = ModelRequest(tokens, gconfig, conversation=name if self._affinity else None)
            response = await engine.agenerate(request)
            tokens = [*tokens, *response.output_tokens]
            calls.append(call_of(len(request.input_ids), tokens))
            await asyncio.sleep(drawn.uniform(0.0, TOOL_S))
        return calls


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Shares in percent, beside those that are possible and those without affinity."""
    conversations = 4 if small else CONVERSATIONS
    result = []
    for count in SCRIPTED_SERVERS:
        with ExitStack() as stack:
            servers = [stack.enter_context(scripted_server(**SCRIPT)) for _ in range(count)]
            result += _on(servers, "scripted", conversations, rounds)
    if not small:
        with _real_servers() as servers:
            result += _on(servers, "SGLang", conversations, rounds)
    return result


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


def call_of(prompt_len: int, tokens: list[int]) -> Trajectory:
    """A call with these tokens; its log-probs are of no interest."""
    count = len(tokens)
    return Trajectory.of_lists(
        input_ids=tokens,
        loss_mask=[position >= prompt_len for position in range(count)],
        logprobs=[0.0] * count,
        versions=[0] * count,
        reward=0.0,
        prompt_len=prompt_len,
        finish_reason="stop",
    )


@contextmanager
def _real_servers() -> Iterator[list[str]]:
    """SGLang servers with a small model of random weights, whose caches have room for everything."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder)
        save_qwen3(path / "model", layers=2, hidden=128, vocabulary=VOCABULARY)
        sglang = {"dtype": "float32", "max_total_tokens": CACHE_TOKENS}
        yield [
            stack.enter_context(configured_server(path, path / "model", number, **sglang))
            for number in range(REAL_SERVERS)
        ]


def _on(servers: list[str], kind: str, conversations: int, rounds: int) -> list[Comparison]:
    possible: list[float] = []

    def side(*, affinity: bool) -> float:
        rows = [{"name": f"{len(possible)}.{number}"} for number in range(conversations)]
        found, most = _shares(servers, rows, Conversation(affinity=affinity))
        possible.append(most)
        return found

    ours, without = by_turns(lambda: side(affinity=True), lambda: side(affinity=False), rounds=rounds, warm_up=False)
    work = (
        f"{conversations} conversations of {TURNS} calls, {min(CONCURRENT, conversations)} at a time, on "
        f"{len(servers)} {kind} servers; {INSTRUCTION_TOKENS} tokens of shared instructions, then questions of "
        f"{QUESTION_TOKENS} and answers of at most {NEW_TOKENS} tokens, up to {TOOL_S} s apart"
    )
    unit, bound = "% of prompt tokens", [sum(possible) / len(possible)] * rounds
    return [
        Comparison("affinity", work, unit, ours, "repeated tokens, the most possible", bound, goal=0.9),
        Comparison("affinity", work, unit, ours, "requests to the least loaded server", without),
    ]


def _shares(servers: list[str], rows: list[dict[str, Any]], workflow: Conversation) -> tuple[float, float]:
    """Percentages of the prompt tokens of new conversations: found in the caches, and repeated."""
    engine = RemoteSGLangEngine(RolloutConfig(max_concurrent_rollouts=CONCURRENT), batch_size=len(rows))
    engine.initialize(servers, vocab_size=VOCABULARY)
    try:
        calls = engine.rollout_batch(rows, workflow)
        found = 100 * engine.statistics[stat_names.CACHE_HIT_RATE]
    finally:
        engine.destroy()
    assert len(calls) == len(rows) * TURNS
    in_order = [calls[start : start + TURNS] for start in range(0, len(calls), TURNS)]
    return found, repeated_share(in_order, shared=INSTRUCTION_TOKENS)


def _tokens(drawn: random.Random, count: int) -> list[int]:
    return [drawn.randrange(2, VOCABULARY) for _ in range(count)]
