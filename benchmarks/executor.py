"""Executor: asynchronous against synchronous training, with servers whose response times have a long tail."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from areal_api import stat_names
from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.rollout.workflow import RLVRWorkflow
from areal_trainer.weights.disk import WeightUpdate
from benchmarks.measure import Comparison, by_turns
from benchmarks.models import word_tokenizer
from benchmarks.scripted import scripted_server

BATCH = 32
SAMPLES = 4
NEW_TOKENS = 20
TAIL_SIGMA = 1.0  # standard deviation of the logarithm of a response time
SERVERS = 2
VOCABULARY = 512
STALENESS = 4


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Steps per second with a trainer that sleeps for a fixed time per step, and the bound of perfect overlap."""
    steps, median_s, trainer_s, load_s = (3, 0.005, 0.01, 0.0) if small else (20, 0.08, 0.3, 0.01)
    script = {
        "answer": "benchmarks.scripted:fixed_answer",
        "token_s": median_s / NEW_TOKENS,
        "tail_sigma": TAIL_SIGMA,
        "load_s": load_s,
    }
    with ExitStack() as stack:
        addresses = [stack.enter_context(scripted_server(**script)) for _ in range(SERVERS)]
        weights = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asynchronous, synchronous = by_turns(
            lambda: train_on_scripted_servers(
                addresses, weights, steps=steps, trainer_s=trainer_s, staleness=STALENESS
            )[0],
            lambda: train_on_scripted_servers(addresses, weights, steps=steps, trainer_s=trainer_s, staleness=0)[0],
            rounds=min(rounds, 3),
            warm_up=False,
        )
    work = (
        f"{steps} steps of {BATCH} episodes × {SAMPLES} samples, log-normal durations (median {median_s} s, σ "
        f"{TAIL_SIGMA}), {SERVERS} servers, update {trainer_s} s, η = {STALENESS}"
    )
    # No step is shorter than the trainer's part of it.
    bound = [1 / (trainer_s * rate) for rate in synchronous]
    reached = [rate * trainer_s for rate in asynchronous]
    return [
        Comparison("executor", work, "steps/s", asynchronous, "the same, synchronous (η = 0)", synchronous, goal=2.77),
        Comparison(
            "executor, of the bound",
            f"the trainer never waits: {min(bound):.2f}–{max(bound):.2f} times synchronous",
            "of the steps/s that are possible",
            reached,
            "perfect overlap",
            [1.0] * len(reached),
        ),
    ]


def train_on_scripted_servers(
    addresses: list[str],
    weights: Path,
    *,
    steps: int,
    trainer_s: float,
    staleness: int,
    samples: int = SAMPLES,
    paced: bool = True,
) -> tuple[float, float]:
    """Steps per second and mean staleness of a run whose trainer sleeps for ``trainer_s`` in each step."""
    config = RolloutConfig(max_concurrent_rollouts=BATCH * (staleness + 1))
    engine = RemoteSGLangEngine(config, batch_size=BATCH, max_staleness=staleness, total_batches=steps, paced=paced)
    gconfig = GenerationHyperparameters(n_samples=samples, max_new_tokens=NEW_TOKENS)
    workflow = RLVRWorkflow(lambda *_, **__: 1.0, gconfig, word_tokenizer(VOCABULARY))
    loader = [[_row(step * BATCH + i) for i in range(BATCH)] for step in range(steps + staleness + 1)]
    engine.initialize(addresses, weights=WeightUpdate(0, path=weights))
    pending = None
    ages = []
    try:
        started = time.perf_counter()
        for version in range(1, steps + 1):
            engine.prepare_batch(loader, workflow)
            ages.append(engine.statistics[stat_names.mean(stat_names.STALENESS)])
            time.sleep(trainer_s)
            if pending is not None:
                pending.result()
            pending = engine.update_weights_async(WeightUpdate(version, path=weights))
            if staleness == 0 or version == steps:
                pending.result()
        return steps / (time.perf_counter() - started), sum(ages) / steps
    finally:
        engine.destroy()


def _row(number: int) -> dict[str, Any]:
    """A prompt whose token IDs have a unique sum, which determines the response times."""
    words = [VOCABULARY - 1] * (number // 500) + [2 + number % 500]
    return {"prompt": " ".join(f"w{word}" for word in words)}
