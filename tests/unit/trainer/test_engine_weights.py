"""New weights on scripted servers, and servers that hold other weights than they should."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts read better

import urllib.request

import pytest

from areal_trainer.servers import fleet as fleet_module
from areal_trainer.servers.fleet import NoServerError
from areal_trainer.servers.weight_update import WeightUpdateError
from areal_trainer.weights.disk import WeightUpdate
from support.engines import (
    LONGEST_S,
    engine_on,
    eventually,
    expected,
    generate,
    look_often,
    publish_ones,
    start_generating,
    state_of,
)
from support.scripted_server import Fault, Script, ScriptedServer

LOAD = "/update_weights_from_disk"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    look_often(monkeypatch)


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
        update.result(LONGEST_S)


def test_a_request_that_runs_across_an_update_tells_which_weights_made_which_token(published):
    with ScriptedServer(Script(token_s=0.03)) as server, engine_on(server) as engine:
        request = start_generating(engine)
        eventually(lambda: server.tokens_under_way > 0)
        engine.update_weights(WeightUpdate(1, published))
        [response] = request.result(LONGEST_S)
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
        assert request.result(LONGEST_S)[0].output_versions == [1] * 40
        update.result(LONGEST_S)


def test_a_refused_update_is_an_error_and_the_server_goes_on(published):
    with ScriptedServer() as server, engine_on(server) as engine:
        with pytest.raises(WeightUpdateError, match=r"no server took weights v1.*does not exist"):
            engine.update_weights(WeightUpdate(1, published / "missing"))
        assert urllib.request.urlopen(f"http://{server.address}/ready", timeout=5).status == 200  # 503 while paused


def test_an_update_that_changes_nothing_is_noticed(published):
    lying = Fault("status", path=LOAD, status=200, body='{"success": true}', times=0)
    with ScriptedServer(Script(faults=(lying,))) as server, engine_on(server) as engine:
        with pytest.raises(WeightUpdateError, match="says that it holds 'v0' after loading v1"):
            engine.update_weights(WeightUpdate(1, published))


def test_a_server_that_dies_in_an_update_does_not_stop_the_other(published):
    dying = Script(faults=(Fault("die", path=LOAD),))
    with ScriptedServer(dying) as first, ScriptedServer() as second, engine_on(first, second) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert state_of(engine, first) == "gone"
        assert generate(engine)[0].output_versions == [1] * 40
        first.restart()
        eventually(lambda: first.weight_version == "v1" and state_of(engine, first) == "current")


def test_servers_are_counted_by_what_they_hold(published):
    refusing = Script(faults=(Fault("status", path=LOAD, status=400, body="{}", times=0),))
    with ScriptedServer() as first, ScriptedServer(refusing) as second, ScriptedServer() as third:
        with engine_on(first, second, third) as engine:
            assert engine._fleet.statistics() == {"rollout/servers_current": 3, "rollout/servers_behind": 0}
            third.kill()
            engine.update_weights(WeightUpdate(1, published))
            eventually(lambda: (state_of(engine, second), state_of(engine, third)) == ("behind", "gone"))
            assert engine._fleet.statistics() == {"rollout/servers_current": 1, "rollout/servers_behind": 1}


def test_an_update_waits_for_a_single_server_that_restarts_in_it(published):
    restarting = Script(faults=(Fault("restart", path=LOAD, delay_s=0.2),))
    with ScriptedServer(restarting) as server, engine_on(server) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert server.weight_version == "v1"


def test_a_restarted_server_is_brought_up_to_date_before_it_gets_requests(published):
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        engine.update_weights(WeightUpdate(3, published))
        first.restart()
        for _ in range(12):
            assert generate(engine)[0].output_versions == [3] * 40
        eventually(lambda: state_of(engine, first) == "current")
        assert first.weight_version == "v3"


def test_an_answer_made_with_base_weights_after_a_restart_is_thrown_away(published, monkeypatch):
    monkeypatch.setattr(fleet_module, "PROBE_PERIOD_S", 3600)  # only the answer can tell
    with ScriptedServer() as server, engine_on(server) as engine:
        engine.update_weights(WeightUpdate(2, published))
        server.restart()
        assert generate(engine)[0].output_versions == [2] * 40
        assert server.weight_version == "v2"


def test_a_restart_at_version_0_is_noticed_too():
    with ScriptedServer() as server, engine_on(server) as engine:
        server.restart()
        eventually(lambda: server.weight_version == "v0")
        assert generate(engine)[0].output_versions == [0] * 40


def test_another_runs_v5_is_not_taken_for_ours(published):
    with ScriptedServer(Script(weight_version="v5")) as server:
        with engine_on(server, weights=WeightUpdate(5, published)) as engine:
            assert engine.get_version() == 5
            assert server.counts[LOAD] == 1


def test_weights_of_an_unknown_version_need_a_directory_to_load_from():
    with (
        ScriptedServer(Script(weight_version="v7")) as server,
        pytest.raises(NoServerError, match="it says 'v7', not 'v0', and v0 was not published to disk"),
        engine_on(server, setup_timeout=1.0),
    ):
        pass


def test_a_run_that_begins_again_gives_servers_the_base_model_back(tmp_path):
    with ScriptedServer(Script(weight_version="v7")) as server:
        with engine_on(server, weights=WeightUpdate(0, path=tmp_path)) as engine:  # no manifest: not of this run
            assert server.counts[LOAD] == 1
            assert generate(engine)[0].output_versions == [0] * 40


def test_a_server_without_a_directory_to_load_from_is_told_of():
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        engine._loop.run(
            engine._fleet.control(engine._fleet.servers[0], "/update_weight_version", {"new_version": "v1"})
        )
        engine.set_version(1)  # as after a broadcast that the second one missed
        eventually(lambda: state_of(engine, first) == "current" and state_of(engine, second) == "behind")
        assert engine.servers_behind()
        assert generate(engine)[0].output_versions == [1] * 40


def test_a_restarted_server_is_not_given_files_that_were_damaged_since(published):
    with ScriptedServer() as first, ScriptedServer() as second:
        with engine_on(first, second) as engine:
            engine.update_weights(WeightUpdate(1, published))
            weights = published / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1])
            second.kill()
            second.restart()
            eventually(lambda: "bytes, but its manifest lists" in engine._fleet.states())
            assert second.counts.get(LOAD, 0) == 0
            assert len(generate(engine)) == 1
