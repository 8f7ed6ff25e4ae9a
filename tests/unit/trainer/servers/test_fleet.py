"""States of the servers, and which one gets the next request."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts are easier to read

import pytest

from areal_trainer.servers.fleet import NoServerError
from areal_trainer.weights.disk import WeightUpdate
from support.engines import (
    TIMEOUT_S,
    engine_on,
    eventually,
    generate,
    publish_ones,
    start_generating,
    state_of,
)
from support.scripted_server import Fault, Script, ScriptedServer

LOAD = "/update_weights_from_disk"


@pytest.fixture
def published(tmp_path):
    return publish_ones(tmp_path)


def test_prompts_go_to_the_server_with_the_least_work():
    held = Script(faults=(Fault("hold", times=0),))
    with ScriptedServer(held) as first, ScriptedServer(held) as second, engine_on(first, second) as engine:
        big = start_generating(engine, n=8)
        eventually(lambda: first.counts.get("/generate", 0) + second.counts.get("/generate", 0) == 1)
        busy, idle = (first, second) if first.counts.get("/generate") else (second, first)
        small = [start_generating(engine) for _ in range(4)]
        eventually(lambda: busy.counts["/generate"] + idle.counts.get("/generate", 0) == 5)
        assert (busy.counts["/generate"], idle.counts["/generate"]) == (1, 4)
        for server in (first, second):
            server.release()
        for request in (big, *small):
            request.result(TIMEOUT_S)


def test_servers_are_counted_by_what_they_hold(published):
    refusing = Script(faults=(Fault("status", path=LOAD, status=400, body="{}", times=0),))
    with ScriptedServer() as first, ScriptedServer(refusing) as second, ScriptedServer() as third:
        with engine_on(first, second, third) as engine:
            assert [server.state for server in engine.servers()] == ["current"] * 3
            third.kill()
            engine.update_weights(WeightUpdate(1, published))
            eventually(lambda: (state_of(engine, second), state_of(engine, third)) == ("behind", "gone"))
            assert [server.state for server in engine.servers()] == ["current", "behind", "gone"]


def test_with_no_server_left_the_error_says_the_state_of_each():
    with ScriptedServer() as server, engine_on(server, setup_timeout=1.0) as engine:
        server.kill()
        with pytest.raises(NoServerError, match=f"{server.address} is gone"):
            generate(engine)
