"""Rollout client: episodes a second of engine, executor and workflow, beside a loop that only posts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import orjson
import uvloop
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.rollout.workflow import RLVRWorkflow
from benchmarks.measure import Comparison, by_turns
from benchmarks.scripted import scripted_server

CONCURRENT = 64
SAMPLES = 8
PROMPT_TOKENS = 32
NEW_TOKENS = 20
VOCABULARY = 512


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Episodes of one request each: a prompt is tokenised, its samples are fetched, decoded, judged, recorded."""
    episodes = 64 if small else 2048
    rows = [{"prompt": " ".join(f"w{(i + k) % VOCABULARY}" for k in range(PROMPT_TOKENS))} for i in range(episodes)]
    gconfig = GenerationHyperparameters(n_samples=SAMPLES, max_new_tokens=NEW_TOKENS)
    workflow = RLVRWorkflow(lambda *_, **__: 1.0, gconfig, _tokenizer())
    script = {"answer": "benchmarks.scripted:fixed_answer", "logprob": -1.0, "vocab_size": VOCABULARY}
    with scripted_server(**script) as address:
        ours, baseline = by_turns(
            lambda: _engine_rate(address, rows, workflow),
            lambda: uvloop.run(_bare_rate(address, rows, workflow)),
            rounds=rounds,
        )
    work = (
        f"{episodes} episodes of {SAMPLES} samples, prompts of {PROMPT_TOKENS} and answers of {NEW_TOKENS} tokens, "
        f"{CONCURRENT} at a time, a server that answers at once"
    )
    return [Comparison("rollout", work, "episodes/s", ours, "bare loop over aiohttp", baseline, goal=0.9)]


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
    assert len(batch) == len(rows) * SAMPLES
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
            assert len(answers) == SAMPLES

    async with session:
        started = time.perf_counter()
        await asyncio.gather(*(post_until_done() for _ in range(CONCURRENT)))
        return len(rows) / (time.perf_counter() - started)


def _body(row: dict[str, Any], workflow: RLVRWorkflow) -> dict[str, Any]:
    params = {"n": SAMPLES, "max_new_tokens": NEW_TOKENS, "temperature": 1.0}
    params["stop_token_ids"] = workflow.gconfig.stop_token_ids
    return {"input_ids": workflow.tokenize(row)[1], "sampling_params": params, "return_logprob": True}


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w1")
