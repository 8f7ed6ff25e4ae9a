"""Rollout client: episodes a second of engine, executor and workflow, beside a loop that only posts."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import uvloop

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.rollout.workflow import RLVRWorkflow
from benchmarks.measure import Comparison, by_turns
from benchmarks.models import word_tokenizer
from benchmarks.scripted import scripted_server

CONCURRENT = 64
VOCABULARY = 512


@dataclass(frozen=True)
class Size:
    """What an episode is."""

    episodes: int
    samples: int
    prompt_tokens: int
    new_tokens: int


# The tiny example's, and that of AReaL's GSM8K recipe.
SIZES = (Size(2048, samples=8, prompt_tokens=32, new_tokens=20), Size(512, samples=4, prompt_tokens=96, new_tokens=256))
SMALL = (Size(64, samples=2, prompt_tokens=4, new_tokens=4),)


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Episodes of one request each: a prompt is tokenised, its samples are fetched, decoded, judged, recorded."""
    # Else a collection of all modules that are loaded falls on whichever side happens to be running.
    gc.freeze()
    return [_compare(size, rounds) for size in (SMALL if small else SIZES)]


def _compare(size: Size, rounds: int) -> Comparison:
    rows = [
        {"prompt": " ".join(f"w{(i + k) % VOCABULARY}" for k in range(size.prompt_tokens))}
        for i in range(size.episodes)
    ]
    gconfig = GenerationHyperparameters(n_samples=size.samples, max_new_tokens=size.new_tokens)
    workflow = RLVRWorkflow(lambda *_, **__: 1.0, gconfig, word_tokenizer(VOCABULARY))
    script = {"answer": "benchmarks.scripted:fixed_answer", "logprob": -1.0, "vocab_size": VOCABULARY}
    with scripted_server(**script) as address:
        ours, baseline = by_turns(
            lambda: _engine_rate(address, rows, workflow),
            lambda: uvloop.run(_bare_rate(address, rows, workflow)),
            rounds=rounds,
        )
    work = (
        f"{size.episodes} episodes of {size.samples} samples, prompts of {size.prompt_tokens} and answers of "
        f"{size.new_tokens} tokens, {CONCURRENT} at a time, a server that answers at once"
    )
    return Comparison("rollout", work, "episodes/s", ours, "bare loop over aiohttp and orjson", baseline, goal=0.9)


def _engine_rate(address: str, rows: list[dict[str, Any]], workflow: RLVRWorkflow) -> float:
    """Through the staleness gate, as in training: one batch of all rows."""
    config = RolloutConfig(max_concurrent_rollouts=CONCURRENT)
    engine = RemoteSGLangEngine(config, batch_size=len(rows), total_batches=1)
    engine.initialize([address], vocab_size=VOCABULARY)
    try:
        started = time.perf_counter()
        batch = engine.prepare_batch([rows], workflow)
        seconds = time.perf_counter() - started
    finally:
        engine.destroy()
    assert len(batch) == len(rows) * workflow.gconfig.n_samples
    return len(rows) / seconds


async def _bare_rate(address: str, rows: list[dict[str, Any]], workflow: RLVRWorkflow) -> float:
    """The same bodies, made beforehand; each answer is decoded from JSON and dropped."""
    url, bodies = f"http://{address}/generate", iter([_body(row, workflow) for row in rows])
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers={"Content-Type": "application/json"}
    )

    async def post_until_done() -> None:
        for body in bodies:
            async with session.post(url, data=orjson.dumps(body)) as response:
                answers = orjson.loads(await response.read())
            assert len(answers) == workflow.gconfig.n_samples

    async with session:
        started = time.perf_counter()
        await asyncio.gather(*(post_until_done() for _ in range(CONCURRENT)))
        return len(rows) / (time.perf_counter() - started)


def _body(row: dict[str, Any], workflow: RLVRWorkflow) -> dict[str, Any]:
    gconfig = workflow.gconfig
    params: dict[str, Any] = {"n": gconfig.n_samples, "max_new_tokens": gconfig.max_new_tokens, "temperature": 1.0}
    params["stop_token_ids"] = gconfig.stop_token_ids
    return {"input_ids": workflow.tokenize(row)[1], "sampling_params": params, "return_logprob": True}
