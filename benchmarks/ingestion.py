"""Ingestion of long answers: tokens that one trainer process takes in, from the servers' answers to a packed batch.

Scripted servers answer at once. Their CPU time does not count: on two cores they compete with the trainer, which has a
host to itself in a cluster.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import uvloop

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.batch import pack
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.rollout.workflow import RLVRWorkflow
from benchmarks.measure import Comparison, by_turns
from benchmarks.models import word_tokenizer
from benchmarks.scripted import scripted_server

SERVERS = 2
CONCURRENT = 16  # episodes
SAMPLES = 8
PROMPT_TOKENS = 96
VOCABULARY = 32_000
MILLION = 1e6


@dataclass(frozen=True)
class Size:
    """Episodes of a batch, and the tokens of each of their answers."""

    episodes: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return self.episodes * SAMPLES * self.new_tokens


SIZES = (Size(32, 4_096), Size(8, 16_384))  # a million tokens each
SMALL = (Size(2, 16),)


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Million tokens per CPU second of the trainer's process, with all of its threads."""
    gc.freeze()  # otherwise a collection of all loaded modules is charged to the side that happens to be running
    with ExitStack() as stack:
        script = {
            "answer": "benchmarks.scripted:fixed_answer",
            "logprob": -1.0,
            "vocab_size": VOCABULARY,
            "context_length": 65_536,
        }
        addresses = [stack.enter_context(scripted_server(**script)) for _ in range(SERVERS)]
        return [_compare(size, addresses, rounds) for size in (SMALL if small else SIZES)]


def _compare(size: Size, addresses: Sequence[str], rounds: int) -> Comparison:
    gconfig = GenerationHyperparameters(n_samples=SAMPLES, max_new_tokens=size.new_tokens)
    workflow = RLVRWorkflow(_reward, gconfig, word_tokenizer(VOCABULARY))
    walls: list[float] = []

    def ingest() -> None:
        began = time.perf_counter()
        _ingest(size, addresses, workflow)
        walls.append(time.perf_counter() - began)

    def measured(side: Callable[[], None]) -> float:
        cpu_s = time.process_time()
        side()
        return size.tokens / (time.process_time() - cpu_s) / MILLION

    rates = by_turns(
        lambda: measured(ingest),
        lambda: measured(lambda: uvloop.run(_drop(size, addresses, workflow))),
        rounds=rounds,
    )
    fastest = size.tokens / min(walls) / MILLION
    return Comparison(
        "ingestion",
        f"{size.episodes} episodes of {SAMPLES} answers of {size.new_tokens:,} tokens from {SERVERS} servers",
        "million tokens per CPU second",
        rates[0],
        "the same answers, decoded from JSON and dropped",
        rates[1],
        notes=[f"at most {fastest:.2f} million tokens/s by the clock, on the cores that the servers use as well"],
    )


def _reward(*_: Any, **__: Any) -> float:
    return 1.0


def _rows(size: Size) -> list[dict[str, Any]]:
    return [{"prompt": " ".join(f"w{i + k}" for k in range(PROMPT_TOKENS))} for i in range(size.episodes)]


def _ingest(size: Size, addresses: Sequence[str], workflow: RLVRWorkflow) -> None:
    """Fetch, check, decode, judge, record and pack a batch, as in training."""
    config = RolloutConfig(max_concurrent_rollouts=CONCURRENT)
    engine = RemoteSGLangEngine(config, batch_size=size.episodes, total_batches=1)
    engine.initialize(list(addresses), vocab_size=VOCABULARY)
    try:
        batch = pack(engine.prepare_batch([_rows(size)], workflow))
    finally:
        engine.destroy()
    assert int(batch.loss_mask_T.sum()) == size.tokens


async def _drop(size: Size, addresses: Sequence[str], workflow: RLVRWorkflow) -> None:
    """Fetch the same answers over aiohttp, and drop them."""
    params: dict[str, Any] = {"n": SAMPLES, "max_new_tokens": size.new_tokens, "temperature": 1.0}
    params["stop_token_ids"] = workflow.gconfig.stop_token_ids
    bodies = [
        {"input_ids": workflow.tokenize(row)[1], "sampling_params": params, "return_logprob": True}
        for row in _rows(size)
    ]
    slots = asyncio.Semaphore(CONCURRENT)
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:

        async def post(number: int, body: dict[str, Any]) -> None:
            url = f"http://{addresses[number % len(addresses)]}/generate"
            async with slots, session.post(url, data=orjson.dumps(body)) as response:
                assert len(orjson.loads(await response.read())) == SAMPLES

        await asyncio.gather(*(post(number, body) for number, body in enumerate(bodies)))
