"""New weights on scripted servers, loaded from disk."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts are easier to read

import urllib.request

import pytest

from areal_trainer.servers.weight_update import WeightUpdateError
from areal_trainer.weights.disk import WeightUpdate
from support.engines import (
    TIMEOUT_S,
    engine_on,
    eventually,
    expected,
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


def test_an_update_reaches_every_server_and_later_tokens_say_so(published):
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert (first.weight_version, second.weight_version) == ("v1", "v1")
        assert engine.get_version() == 1
        assert generate(engine)[0].output_versions == [1] * 40
        assert first.counts["/continue_generation"] >= 2


def test_servers_load_side_by_side(published):
    held = Script(faults=(Fault("hold", path=LOAD),))
    with ScriptedServer(held) as first, ScriptedServer(held) as second, engine_on(first, second) as engine:
        update = engine.update_weights_async(WeightUpdate(1, published))
        eventually(lambda: (first.counts.get(LOAD), second.counts.get(LOAD)) == (1, 1))  # none of them is done
        first.release()
        second.release()
        update.result(TIMEOUT_S)


def test_a_request_that_runs_across_an_update_tells_which_weights_made_which_token(published):
    with ScriptedServer(Script(token_s=0.03)) as server, engine_on(server) as engine:
        request = start_generating(engine)
        eventually(lambda: server.tokens_in_flight > 0)
        engine.update_weights(WeightUpdate(1, published))
        [response] = request.result(TIMEOUT_S)
        assert response.output_tokens == expected().tokens
        assert server.counts["/generate"] == 1
        change = response.output_versions.index(1)
        assert 0 < change < 40
        assert response.output_versions == [0] * change + [1] * (40 - change)


def test_requests_made_during_an_update_wait_and_get_the_new_weights(published):
    with ScriptedServer(Script(faults=(Fault("hold", path=LOAD),))) as server, engine_on(server) as engine:
        update = engine.update_weights_async(WeightUpdate(1, published))
        eventually(lambda: server.counts.get(LOAD, 0) == 1)
        request = start_generating(engine)
        assert engine.get_version() == 0
        server.release()
        assert request.result(TIMEOUT_S)[0].output_versions == [1] * 40
        update.result(TIMEOUT_S)


def test_a_refused_update_is_an_error_and_the_server_goes_on(published):
    with ScriptedServer() as server, engine_on(server) as engine:
        with pytest.raises(WeightUpdateError, match=r"no server took weights v1.*does not exist"):
            engine.update_weights(WeightUpdate(1, published / "missing"))
        assert urllib.request.urlopen(f"http://{server.address}/ready", timeout=5).status == 200  # 503 while paused


def test_an_update_that_changes_nothing_is_noticed(published):
    lying = Fault("status", path=LOAD, status=200, body='{"success": true}', times=0)
    with ScriptedServer(Script(faults=(lying,))) as server, engine_on(server) as engine:
        with pytest.raises(WeightUpdateError, match="reports 'v0' after loading v1"):
            engine.update_weights(WeightUpdate(1, published))


def test_a_server_that_dies_in_an_update_does_not_stop_the_other(published):
    dying = Script(faults=(Fault("die", path=LOAD),))
    with ScriptedServer(dying) as first, ScriptedServer() as second, engine_on(first, second) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert state_of(engine, first) == "gone"
        assert generate(engine)[0].output_versions == [1] * 40
        first.restart()
        eventually(lambda: first.weight_version == "v1" and state_of(engine, first) == "current")


def test_an_update_waits_for_a_single_server_that_restarts_in_it(published):
    restarting = Script(faults=(Fault("restart", path=LOAD, delay_s=0.2),))
    with ScriptedServer(restarting) as server, engine_on(server) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert server.weight_version == "v1"


def test_an_update_does_not_wait_for_servers_that_end_together_with_the_run(published):
    """Otherwise the trainer could not write its last checkpoint."""
    with ScriptedServer(Script(faults=(Fault("die", path=LOAD),))) as server, engine_on(server) as engine:
        update = engine.update_weights_async(WeightUpdate(1, published))
        eventually(lambda: state_of(engine, server) == "gone")
        assert not update.done()
        engine.interrupt()
        update.result(TIMEOUT_S)
