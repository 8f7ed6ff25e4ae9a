"""States of the servers, and which one gets the next request."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts are easier to read

import pytest

from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.servers.fleet import Fleet, NoServerError, Target
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


def shares(engine: RemoteSGLangEngine, first: ScriptedServer, second: ScriptedServer, total: int) -> tuple[int, int]:
    """How many of ``total`` concurrent requests each of the two servers gets, which hold them meanwhile."""
    for server in (first, second):
        server.add_faults(Fault("hold", times=0))
    requests = [start_generating(engine) for _ in range(total)]
    eventually(lambda: first.counts.get("/generate", 0) + second.counts.get("/generate", 0) == total)
    found = first.counts.get("/generate", 0), second.counts.get("/generate", 0)
    for server in (first, second):
        server.release()
    for request in requests:
        request.result(TIMEOUT_S)
    return found


def test_a_server_with_four_times_the_cache_gets_four_times_the_samples():
    small, large = Script(cache_tokens=10_000), Script(cache_tokens=40_000)
    with ScriptedServer(small) as first, ScriptedServer(large) as second, engine_on(first, second) as engine:
        assert shares(engine, first, second, 20) == (4, 16)


def test_a_server_that_does_not_report_its_cache_gets_no_requests():
    with ScriptedServer(Script(cache_tokens=0)) as first, ScriptedServer() as second:
        with engine_on(first, second) as engine:
            assert [server.state for server in engine.servers()] == ["behind", "current"]
            assert "max_total_num_tokens 0" in engine.servers()[0].reason


def test_a_server_that_restarts_with_another_cache_gets_its_share():
    with ScriptedServer(Script(cache_tokens=10_000)) as first, ScriptedServer() as second:
        with engine_on(first, second) as engine:
            first.script = Script(cache_tokens=655_360)
            first.restart()
            eventually(lambda: [server.incarnation for server in engine.servers()] == [1, 0])
            eventually(lambda: [server.state for server in engine.servers()] == ["current", "current"])
            assert shares(engine, first, second, 11) == (10, 1)


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


async def fleet_of(*loads: int) -> Fleet:
    """A fleet of current servers with these samples in flight."""
    fleet = Fleet([f"s{number}:1" for number in range(len(loads))], target=Target(), wait_s=1.0)
    for server, load in zip(fleet.servers, loads, strict=True):
        server.state, server.load = "current", load
    return fleet


async def test_a_conversation_stays_on_its_server_while_others_have_less_work():
    fleet = await fleet_of(0, 1)
    home = await fleet.acquire(set(), "talk")
    assert home is fleet.servers[0]
    home.load = 5
    assert await fleet.acquire(set(), "talk") is home
    assert await fleet.acquire(set(), "other") is fleet.servers[1]


async def test_a_conversation_leaves_a_server_that_is_overloaded_gone_or_failed_it():
    fleet = await fleet_of(0, 1)
    home, other = fleet.servers
    assert await fleet.acquire(set(), "talk") is home
    home.load = 7  # above 1.5 · 1 + 4
    assert await fleet.acquire(set(), "talk") is other
    home.load = 0
    assert await fleet.acquire(set(), "talk") is other
    assert await fleet.acquire({other}, "talk") is home
    home.state = "gone"
    assert await fleet.acquire(set(), "talk") is other


async def test_a_conversation_stays_on_a_large_server_with_more_samples_than_a_small_one():
    fleet = await fleet_of(0, 1)
    large, small = fleet.servers
    large.capacity, small.capacity = 4, 1
    assert await fleet.acquire(set(), "talk") is large
    large.load = 10  # 1.5 · 4 + 4
    assert await fleet.acquire(set(), "talk") is large
    large.load = 11
    assert await fleet.acquire(set(), "talk") is small


async def test_new_weights_free_a_conversation_for_the_least_loaded_server():
    fleet = await fleet_of(0, 1)
    home, other = fleet.servers
    assert await fleet.acquire(set(), "talk") is home
    home.load = 3
    fleet.set_target(Target(1))
    for server in fleet.servers:
        server.state = "current"
    assert await fleet.acquire(set(), "talk") is other


def test_statistics_say_which_weights_each_server_holds_and_how_often_it_lost_them():
    fleet = Fleet(["a:1", "b:1"], target=Target(3), wait_s=1.0)
    for server in fleet.servers:
        server.version = 3
        fleet.finish_update(server, None)
    fleet.mark_stale(fleet.servers[1], RuntimeError("it has restarted"))
    found = {name: value for name, value in fleet.statistics().items() if name.startswith("servers/")}
    assert found == {"servers/0/version": 3, "servers/0/losses": 0, "servers/1/version": -1, "servers/1/losses": 1}
