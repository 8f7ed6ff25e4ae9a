"""The engine and a server that was told to end: it finishes what it has begun and gets nothing more."""

import asyncio
import time
from concurrent.futures import Future

import pytest

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest, ModelResponse, RemoteSGLangEngine
from areal_trainer.servers import fleet as fleet_module
from support.scripted_server import Script, ScriptedServer

GCONFIG = GenerationHyperparameters(max_new_tokens=40, ignore_eos=True)
SLOW = Script(token_s=0.02)  # 0.8 s an answer


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "LONGEST_BACKOFF_S", 0.05)
    monkeypatch.setattr(fleet_module, "PROBE_PERIOD_S", 0.05)


def engine_on(*servers: ScriptedServer) -> RemoteSGLangEngine:
    engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=2, setup_timeout=5.0, request_timeout=5.0))
    engine.initialize([server.address for server in servers])
    return engine


def start(engine: RemoteSGLangEngine) -> Future[list[ModelResponse]]:
    return engine._loop.start(engine.agenerate_n(ModelRequest([11, 12, 13], GCONFIG), 1))


def wait_for_state(engine: RemoteSGLangEngine, place: int, state: str) -> None:
    deadline = time.monotonic() + 3.0
    while engine._fleet.servers[place].state != state:
        assert time.monotonic() < deadline, engine._fleet.states()
        time.sleep(0.005)


def test_a_draining_server_finishes_its_requests_and_gets_no_more() -> None:
    with ScriptedServer(SLOW) as first, ScriptedServer(SLOW) as second:
        engine = engine_on(first, second)
        begun = [start(engine), start(engine)]
        while not (first.counts.get("/generate") and second.counts.get("/generate")):
            time.sleep(0.005)
        first.drain()
        wait_for_state(engine, 0, "gone")
        assert not any(request.done() for request in begun)
        for later in [start(engine) for _ in range(4)]:
            assert len(later.result(5)[0].output_tokens) == 40
        assert [len(request.result(5)[0].output_tokens) for request in begun] == [40, 40]
        assert (first.counts["/generate"], second.counts["/generate"]) == (1, 5)
        first.restart()
        wait_for_state(engine, 0, "current")
        engine.destroy()


def test_a_server_that_drains_before_the_engine_comes_is_left_alone() -> None:
    with ScriptedServer() as first, ScriptedServer() as second:
        first.drain()
        engine = engine_on(first, second)
        asyncio.run(engine.agenerate_n(ModelRequest([11, 12, 13], GCONFIG), 1))
        assert "/generate" not in first.counts
        assert engine._fleet.servers[0].state == "gone"
        engine.destroy()
