"""An engine connected to scripted servers, and helpers to use and observe it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest, ModelResponse, RemoteSGLangEngine
from areal_trainer.ranks import Ranks
from areal_trainer.servers.control import ServerTimings
from areal_trainer.servers.fleet import ServerStatus
from areal_trainer.weights.disk import publish_to_disk
from support.scripted_answers import Sample
from support.scripted_answers import sample as scripted_sample
from support.scripted_server import Script, ScriptedServer

PROMPT = [11, 12, 13]
GCONFIG = GenerationHyperparameters(max_new_tokens=40, ignore_eos=True)
TIMEOUT_S = 30.0  # of what is immediate on an idle machine
FAST = ServerTimings(probe_period_s=0.05, max_backoff_s=0.05, retry_wait_s=0.01)


def publish_ones(run: Path, *, version: int = 0, deltas: bool = False) -> Path:
    """A directory of weights as published by the trainer: ones, plus the version."""
    return publish_to_disk(
        Ones(version), run=run, version=version, dtype=torch.float32, ranks=Ranks.current(), deltas=deltas
    )


class Ones:
    """A policy of one tensor: ones, plus the version."""

    def __init__(self, version: int = 0) -> None:
        self.version = version

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "a.weight", torch.ones(4) + self.version

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.named_full_tensors()

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def save_model_config(self, directory: Path) -> None:
        pass


@contextmanager
def engine_on(*servers: ScriptedServer | str, **settings: Any) -> Iterator[RemoteSGLangEngine]:
    """An engine with batches of two that probes its servers every 50 ms; without servers, those of the environment.

    ``settings`` are fields of ``RolloutConfig``, or ``timings``, or arguments of ``initialize``.
    """
    timings = settings.pop("timings", FAST)
    start = {name: settings.pop(name) for name in ("weights", "vocab_size", "routing") if name in settings}
    config = {"consumer_batch_size": 2, "setup_timeout": TIMEOUT_S, "request_timeout": TIMEOUT_S} | settings
    engine = RemoteSGLangEngine(RolloutConfig(**config), timings=timings)
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    engine.initialize(addresses or None, **start)
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
    """The same in the background."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(generate, engine, n, gconfig=gconfig)
    pool.shutdown(wait=False)
    return future


def expected(*, index: int = 0, length: int = 40) -> Sample:
    """The completion of ``PROMPT`` by a server without faults."""
    return scripted_sample(Script(), PROMPT, {"max_new_tokens": length, "ignore_eos": True, "temperature": 1.0}, index)


def status_of(engine: RemoteSGLangEngine, address: str) -> ServerStatus:
    return next(server for server in engine.servers() if server.address == address)


def state_of(engine: RemoteSGLangEngine, server: ScriptedServer) -> str:
    return status_of(engine, server.address).state


def post(server: ScriptedServer, path: str, **body: Any) -> None:
    """An administrative request that does not come from the engine."""
    request = urllib.request.Request(f"http://{server.address}{path}", data=json.dumps(body).encode())
    urllib.request.urlopen(request, timeout=5).close()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {TIMEOUT_S} s"
        time.sleep(0.005)
