"""Servers that restart, drain, come later or hold other weights than they should."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts are easier to read

import json

import pytest

from areal_api import names
from areal_trainer.servers.control import ServerTimings
from areal_trainer.servers.fleet import NoServerError
from areal_trainer.weights.disk import WeightUpdate
from support.engines import (
    TIMEOUT_S,
    engine_on,
    eventually,
    expected,
    generate,
    post,
    publish_ones,
    start_generating,
    state_of,
    status_of,
)
from support.scripted_server import Fault, Script, ScriptedServer

LOAD = "/update_weights_from_disk"


SLOW = Script(token_s=0.02)  # 0.8 s per completion


@pytest.fixture
def published(tmp_path):
    return publish_ones(tmp_path)


def test_a_server_that_comes_later_gets_work():
    with ScriptedServer() as first, ScriptedServer() as later:
        later.kill()
        with engine_on(first, later) as engine:
            assert state_of(engine, later) == "gone"
            later.restart()
            eventually(lambda: state_of(engine, later) == "current")
            for _ in range(4):
                generate(engine)
            assert later.counts["/generate"] == 2


def test_a_server_left_paused_by_a_killed_trainer_is_continued():
    with ScriptedServer() as server:
        post(server, "/pause_generation", mode="retract")
        with engine_on(server) as engine:
            assert generate(engine)[0].output_tokens == expected().tokens


def test_a_restarted_server_is_brought_up_to_date_before_it_gets_requests(published):
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        engine.update_weights(WeightUpdate(3, published))
        first.restart()
        for _ in range(12):
            assert generate(engine)[0].output_versions == [3] * 40
        eventually(lambda: state_of(engine, first) == "current")
        assert first.weight_version == "v3"


def test_an_answer_made_with_base_weights_after_a_restart_is_thrown_away(published):
    no_probes = ServerTimings(probe_period_s=3600)  # only the response reveals the restart
    with ScriptedServer() as server, engine_on(server, timings=no_probes) as engine:
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
        pytest.raises(NoServerError, match="it reports 'v7', not 'v0', and v0 is not on disk"),
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
        post(first, "/update_weight_version", new_version="v1", abort_all_requests=False)
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
            eventually(lambda: "bytes, but its manifest lists" in status_of(engine, second.address).reason)
            assert second.counts.get(LOAD, 0) == 0
            assert len(generate(engine)) == 1


def test_a_draining_server_finishes_its_requests_and_gets_no_more() -> None:
    with ScriptedServer(SLOW) as first, ScriptedServer(SLOW) as second:
        with engine_on(first, second) as engine:
            running = [start_generating(engine), start_generating(engine)]
            eventually(lambda: bool(first.counts.get("/generate") and second.counts.get("/generate")))
            first.drain()
            eventually(lambda: state_of(engine, first) == "gone")
            assert not any(request.done() for request in running)
            for later in [start_generating(engine) for _ in range(4)]:
                assert len(later.result(TIMEOUT_S)[0].output_tokens) == 40
            assert [len(request.result(TIMEOUT_S)[0].output_tokens) for request in running] == [40, 40]
            assert (first.counts["/generate"], second.counts["/generate"]) == (1, 5)
            first.restart()
            eventually(lambda: state_of(engine, first) == "current")


def test_a_server_that_drains_before_the_engine_connects_gets_no_requests() -> None:
    with ScriptedServer() as first, ScriptedServer() as second:
        first.drain()
        with engine_on(first, second) as engine:
            generate(engine)
            assert "/generate" not in first.counts
            assert state_of(engine, first) == "gone"


@pytest.fixture
def address_file(tmp_path, monkeypatch):
    path = tmp_path / "server-addresses.json"
    monkeypatch.setenv(names.SERVER_ADDRS_FILE, str(path))
    return path


def test_a_server_that_moves_is_followed_and_brought_to_the_published_weights(published, address_file):
    with ScriptedServer() as first, ScriptedServer() as second:
        address_file.write_text(json.dumps([first.address]))
        with engine_on() as engine:
            engine.update_weights(WeightUpdate(3, published))
            first.kill()
            address_file.write_text(json.dumps([second.address]))
            assert generate(engine)[0].output_versions == [3] * 40
            assert second.weight_version == "v3"


def test_requests_in_flight_leave_a_server_that_moves_away_silently(address_file):
    held = Script(faults=(Fault("hold", times=0),))
    with ScriptedServer(held) as silent, ScriptedServer() as other:
        address_file.write_text(json.dumps([silent.address]))
        with engine_on() as engine:
            request = start_generating(engine)
            eventually(lambda: silent.counts.get("/generate", 0) == 1)
            address_file.write_text(json.dumps([other.address]))
            assert request.result(TIMEOUT_S)[0].output_tokens == expected().tokens


def test_a_server_without_an_address_gets_work_once_it_has_one(address_file):
    with ScriptedServer() as first, ScriptedServer() as later:
        address_file.write_text(json.dumps([first.address, ""]))
        with engine_on() as engine:
            assert [status.state for status in engine.servers()] == ["current", "unknown"]
            address_file.write_text(json.dumps([first.address, later.address]))
            eventually(lambda: (later.address, "current") in [(s.address, s.state) for s in engine.servers()])


def test_a_damaged_file_of_addresses_changes_nothing(address_file):
    with ScriptedServer() as first, ScriptedServer() as second:
        address_file.write_text(json.dumps([first.address]))
        with engine_on() as engine:
            for text in ("[", '{"a": 1}', "[]", '["a:1", "b:2"]', "[1]"):
                address_file.write_text(text)
                assert generate(engine)[0].output_tokens == expected().tokens
            address_file.write_text(json.dumps([second.address]))
            eventually(lambda: (second.address, "current") in [(s.address, s.state) for s in engine.servers()])


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]"])
def test_a_file_of_addresses_that_cannot_be_read_at_the_start_is_refused(address_file, text):
    address_file.write_text(text)
    with pytest.raises(ValueError, match="AREAL_SERVER_ADDRS_FILE"), engine_on():
        pass
