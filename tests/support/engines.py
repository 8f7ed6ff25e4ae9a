"""An engine on scripted servers, and what tests ask of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest, ModelResponse, RemoteSGLangEngine
from areal_trainer.servers import fleet as fleet_module
from areal_trainer.weights.disk import publish_to_disk
from support.scripted_answers import Sample
from support.scripted_answers import sample as scripted_sample
from support.scripted_server import Script, ScriptedServer

PROMPT = [11, 12, 13]
GCONFIG = GenerationHyperparameters(max_new_tokens=40, ignore_eos=True)
LONGEST_S = 30.0  # of what comes at once on an idle machine


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the engine look at its servers every 50 ms."""
    monkeypatch.setattr(fleet_module, "LONGEST_BACKOFF_S", 0.05)
    monkeypatch.setattr(fleet_module, "PROBE_PERIOD_S", 0.05)


def publish_ones(run: Path) -> Path:
    """A directory of weights as the trainer publishes it."""
    policy: Any = SimpleNamespace(
        named_full_tensors=lambda: iter([("a.weight", torch.ones(4))]), save_model_config=lambda directory: None
    )
    return publish_to_disk(policy, run=run, version=0, dtype=torch.float32, writes=True)


@contextmanager
def engine_on(*servers: ScriptedServer | str, **settings: Any) -> Iterator[RemoteSGLangEngine]:
    """An engine with batches of two; ``settings`` are of ``RolloutConfig`` and of ``initialize``."""
    start = {name: settings.pop(name) for name in ("weights", "vocab_size") if name in settings}
    config = {"consumer_batch_size": 2, "setup_timeout": LONGEST_S, "request_timeout": LONGEST_S} | settings
    engine = RemoteSGLangEngine(RolloutConfig(**config))
    engine.initialize([server if isinstance(server, str) else server.address for server in servers], **start)
    try:
        yield engine
    finally:
        engine.destroy()


def generate(
    engine: RemoteSGLangEngine,
    n: int = 1,
    prompt: Sequence[int] = PROMPT,
    gconfig: GenerationHyperparameters = GCONFIG,
    **request: Any,
) -> list[ModelResponse]:
    return asyncio.run(engine.agenerate_n(ModelRequest(list(prompt), gconfig, **request), n))


def start_generating(
    engine: RemoteSGLangEngine, n: int = 1, gconfig: GenerationHyperparameters = GCONFIG
) -> Future[list[ModelResponse]]:
    return engine._loop.start(engine.agenerate_n(ModelRequest(list(PROMPT), gconfig), n))


def expected(*, index: int = 0, length: int = 40) -> Sample:
    """What an undisturbed server answers to ``PROMPT``."""
    return scripted_sample(Script(), PROMPT, {"max_new_tokens": length, "ignore_eos": True, "temperature": 1.0}, index)


def state_of(engine: RemoteSGLangEngine, server: ScriptedServer) -> str:
    return next(s.state for s in engine._fleet.servers if s.address == server.address)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass within {LONGEST_S} s"
        time.sleep(0.005)
