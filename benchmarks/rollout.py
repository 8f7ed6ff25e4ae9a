"""Rollout client: episodes/s of engine, executor and workflow against bare loops over the same HTTP client."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
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

Row = dict[str, Any]
Post = Callable[[dict[str, Any]], Awaitable[list[dict[str, Any]]]]
Episode = Callable[[Row, Post], Awaitable[None]]


@dataclass(frozen=True)
class Size:
    """Sizes of an episode."""

    episodes: int
    samples: int
    prompt_tokens: int
    new_tokens: int


# The sizes of the tiny example and of AReaL's GSM8K recipe.
SIZES = (Size(2048, samples=8, prompt_tokens=32, new_tokens=20), Size(512, samples=4, prompt_tokens=96, new_tokens=256))
SMALL = (Size(64, samples=2, prompt_tokens=4, new_tokens=4),)


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Episodes of one request each: tokenise a prompt; fetch, decode, judge and record its samples."""
    # Otherwise a collection of all loaded modules is charged to the side that happens to be running.
    gc.freeze()
    return [comparison for size in (SMALL if small else SIZES) for comparison in _compare(size, rounds)]


def _compare(size: Size, rounds: int) -> list[Comparison]:
    rows: list[Row] = [
        {"prompt": " ".join(f"w{(i + k) % VOCABULARY}" for k in range(size.prompt_tokens))}
        for i in range(size.episodes)
    ]
    gconfig = GenerationHyperparameters(n_samples=size.samples, max_new_tokens=size.new_tokens)
    workflow = RLVRWorkflow(_reward, gconfig, word_tokenizer(VOCABULARY))
    script = {"answer": "benchmarks.scripted:fixed_answer", "logprob": -1.0, "vocab_size": VOCABULARY}
    work = (
        f"{size.episodes} episodes of {size.samples} samples, prompts of {size.prompt_tokens} and answers of "
        f"{size.new_tokens} tokens, {CONCURRENT} at a time, a server that answers at once"
    )
    by_hand = _by_hand(workflow)
    dropped, ready = _dropped(), [{"body": _body(workflow, workflow.tokenize(row)[1])} for row in rows]
    with scripted_server(**script) as address:

        def engine() -> float:
            return _engine_rate(address, rows, workflow)

        return [
            _beside(
                "bare loop, the same episodes", work, rounds, engine, lambda: _loop_rate(address, rows, by_hand), 0.9
            ),
            _beside(
                "bare loop that drops the answers", work, rounds, engine, lambda: _loop_rate(address, ready, dropped)
            ),
        ]


def _beside(
    name: str,
    work: str,
    rounds: int,
    ours: Callable[[], float],
    baseline: Callable[[], float],
    goal: float | None = None,
) -> Comparison:
    """Rates by wall clock; a note gives this process's CPU time, which other load disturbs less."""
    seconds: tuple[list[float], list[float]] = ([], [])

    def measured(side: Callable[[], float], spent: list[float]) -> float:
        began = time.process_time()
        rate = side()
        spent.append(time.process_time() - began)
        return rate

    rates = by_turns(lambda: measured(ours, seconds[0]), lambda: measured(baseline, seconds[1]), rounds=rounds)
    share = statistics.median(b / a for a, b in list(zip(*seconds, strict=True))[1:])  # the first warms up
    note = f"CPU time of the client, {name} ÷ ours: {share:.2f}"
    return Comparison("rollout", work, "episodes/s", rates[0], name, rates[1], goal=goal, notes=[note])


def _reward(*_: Any, **__: Any) -> float:
    return 1.0


def _engine_rate(address: str, rows: list[Row], workflow: RLVRWorkflow) -> float:
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


def _loop_rate(address: str, rows: list[Row], episode: Episode) -> float:
    """Rows per second through ``episode``, over an aiohttp session on uvloop."""

    async def run() -> float:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"}) as session:

            async def post(body: dict[str, Any]) -> list[dict[str, Any]]:
                async with session.post(f"http://{address}/generate", data=orjson.dumps(body)) as response:
                    answers: list[dict[str, Any]] = orjson.loads(await response.read())
                    return answers

            left = iter(rows)

            async def work() -> None:
                for row in left:
                    await episode(row, post)

            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(CONCURRENT)))
            return len(rows) / (time.perf_counter() - started)

    return uvloop.run(run())


def _by_hand(workflow: RLVRWorkflow) -> Episode:
    """An episode without engine, executor and gate: nothing is checked, continued, bounded or counted."""
    backend = workflow.tokenizer.backend_tokenizer

    async def episode(row: Row, post: Post) -> None:
        prompt_ids = backend.encode(row["prompt"]).ids
        answers = await post(_body(workflow, prompt_ids))
        made = [[entry[1] for entry in answer["meta_info"]["output_token_logprobs"]] for answer in answers]
        texts = backend.decode_batch(made, skip_special_tokens=True)
        samples = []
        for answer, ids, text in zip(answers, made, texts, strict=True):
            logprobs = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
            samples.append(
                {
                    "input_ids": np.array(prompt_ids + ids),
                    "loss_mask": np.array([False] * len(prompt_ids) + [True] * len(ids)),
                    "logprobs": np.array([0.0] * len(prompt_ids) + logprobs, dtype=np.float32),
                    "reward": _reward(row["prompt"], text, prompt_ids, ids),
                }
            )
        assert len(samples) == workflow.gconfig.n_samples

    return episode


def _dropped() -> Episode:
    """Prebuilt bodies; each answer is decoded from JSON and dropped."""

    async def episode(row: Row, post: Post) -> None:
        answers = await post(row["body"])
        assert len(answers) == row["body"]["sampling_params"]["n"]

    return episode


def _body(workflow: RLVRWorkflow, prompt_ids: list[int]) -> dict[str, Any]:
    gconfig = workflow.gconfig
    params: dict[str, Any] = {"n": gconfig.n_samples, "max_new_tokens": gconfig.max_new_tokens, "temperature": 1.0}
    params["stop_token_ids"] = gconfig.stop_token_ids
    return {"input_ids": prompt_ids, "sampling_params": params, "return_logprob": True}
