"""Batches of episodes on scripted servers: their order, their age, and what a batch waits for."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts are easier to read

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.rollout.episode import Interrupted
from areal_trainer.rollout.workflow import RLVRWorkflow
from areal_trainer.servers.weight_update import WeightUpdateError
from areal_trainer.weights.disk import WeightUpdate
from support.engines import (
    TIMEOUT_S,
    engine_on,
    eventually,
    publish_ones,
)
from support.rollout_fakes import CharTokenizer
from support.scripted_server import Fault, Script, ScriptedServer


@pytest.fixture
def published(tmp_path):
    return publish_ones(tmp_path)


def rows(count):
    return [{"prompt": f"{i:03d}", "answer": ""} for i in range(count)]


def length_reward(prompt, completions, prompt_ids, completion_ids, **columns):
    return float(len(completion_ids))


def workflow(n=2, max_new_tokens=8):
    gconfig = GenerationHyperparameters(n_samples=n, max_new_tokens=max_new_tokens)
    return RLVRWorkflow(length_reward, gconfig, CharTokenizer())


def loader(count=12, batch=2):
    data = rows(count)
    return [data[i : i + batch] for i in range(0, count, batch)]


def test_synchronous_training_takes_the_loaders_batches_in_order(published):
    with ScriptedServer(Script(token_s=0.001, tail_sigma=1.0)) as server, engine_on(server) as engine:
        data, taken = loader(), []
        for step in range(8):  # an epoch has 6
            batch = engine.prepare_batch(data, workflow())
            assert [t.versions.max() for t in batch] == [step] * 4
            taken += [t.prompt for t in batch[::2]]
            assert engine.statistics["staleness/max"] == 0
            assert engine.statistics["rollout/servers_current"] == 1
            engine.update_weights(WeightUpdate(step + 1, published))
        assert taken == [f"{i % 12:03d}" for i in range(16)]


def test_a_batch_says_how_long_the_trainer_and_the_servers_waited(published):
    with ScriptedServer(Script(token_s=0.001)) as server, engine_on(server) as engine:
        engine.prepare_batch(loader(), workflow())
        engine.update_weights(WeightUpdate(1, published))  # meanwhile the server has no request
        engine.prepare_batch(loader(), workflow())
        assert 0 < engine.statistics["rollout/wait_share"] <= 1
        assert 0 < engine.statistics["rollout/servers_idle"] < 1


def test_asynchronous_training_keeps_the_bound_on_staleness(published):
    script = Script(token_s=0.001, tail_sigma=1.5)
    with ScriptedServer(script) as first, ScriptedServer(script) as second:
        with engine_on(first, second, max_head_offpolicyness=2, max_concurrent_rollouts=16) as engine:
            lags = []
            for step in range(12):
                batch = engine.prepare_batch(loader(), workflow())
                lags += [step - t.head_version for t in batch]
                engine.update_weights(WeightUpdate(step + 1, published))
            assert max(lags) in (1, 2)
            assert min(lags) >= 0


def test_an_update_in_the_background_lets_the_next_batch_begin(published):
    held = Script(faults=(Fault("hold", path="/update_weights_from_disk"),))
    with ScriptedServer(held) as server, engine_on(server, max_head_offpolicyness=1) as engine:
        engine.prepare_batch(loader(), workflow())
        eventually(lambda: server.counts["/generate"] == 4)  # the next batch, generated ahead
        update = engine.update_weights_async(WeightUpdate(1, published))
        eventually(lambda: server.counts.get("/update_weights_from_disk", 0) == 1)
        batch = engine.prepare_batch(loader(), workflow())  # generated ahead with the old weights
        assert not update.done()
        assert {t.head_version for t in batch} == {0}
        threading.Timer(0.1, server.release).start()
        batch = engine.prepare_batch(loader(), workflow())  # waits for the update: the old weights are too old now
        assert {t.head_version for t in batch} == {1}


def test_a_failed_update_in_the_background_ends_the_run(published):
    with ScriptedServer() as server, engine_on(server) as engine:
        engine.prepare_batch(loader(), workflow())
        engine.update_weights_async(WeightUpdate(1, published / "missing"))
        with pytest.raises(WeightUpdateError, match="does not exist"):
            engine.prepare_batch(loader(), workflow())


def test_a_batch_survives_the_death_of_a_server_in_the_midst():
    script = Script(token_s=0.002)
    with ScriptedServer(script) as first, ScriptedServer(script) as second:
        with engine_on(first, second, consumer_batch_size=8) as engine:
            first.add_faults(Fault("die", skip=2))
            batch = engine.prepare_batch(loader(16, 8), workflow(max_new_tokens=40))
            assert [t.prompt for t in batch[::2]] == [f"{i:03d}" for i in range(8)]


def test_a_resumed_run_trains_the_rows_that_were_read_and_not_consumed(published):
    with ScriptedServer() as server:
        with engine_on(server, max_head_offpolicyness=2) as engine:
            taken = [t.prompt for t in engine.prepare_batch(loader(), workflow())[::2]]
            state = engine.state_dict()
        ahead = [row["prompt"] for row in state["rows"]]
        assert sorted(taken + ahead) == [f"{i:03d}" for i in range(len(taken + ahead))]
        with engine_on(server, max_head_offpolicyness=2, weights=WeightUpdate(1, published)) as engine:
            engine.load_state_dict(state)
            assert engine.state_dict()["rows"] == state["rows"]
            again = []
            for step in range(1, 4):
                again += [t.prompt for t in engine.prepare_batch(loader()[len(taken + ahead) // 2 :], workflow())[::2]]
                engine.update_weights(WeightUpdate(step + 1, published))
            assert set(again) <= {*ahead, *(f"{i:03d}" for i in range(len(taken + ahead), 12))}
            assert len(set(again)) == len(again)


def test_rollout_batch_generates_now_and_counts_as_the_batch_of_the_step(published):
    with ScriptedServer() as server, engine_on(server) as engine:
        batch = engine.rollout_batch(rows(2), workflow())
        assert [t.prompt for t in batch] == ["000", "000", "001", "001"]
        engine.update_weights(WeightUpdate(1, published))
        assert {t.head_version for t in engine.prepare_batch(loader(), workflow())} == {1}


def test_submitted_rows_are_waited_for():
    with ScriptedServer() as server, engine_on(server) as engine:
        for row in rows(2):
            engine.submit(row, workflow())
        assert [t.prompt for t in engine.wait(2, timeout=TIMEOUT_S)] == ["000", "000", "001", "001"]


def test_a_wait_has_a_deadline_and_loses_nothing():
    with ScriptedServer(Script(faults=(Fault("hold", times=0),))) as server, engine_on(server) as engine:
        for row in rows(2):
            engine.submit(row, workflow())
        with pytest.raises(TimeoutError):
            engine.wait(2, timeout=0.05)
        server.release()
        assert len(engine.wait(2, timeout=TIMEOUT_S)) == 4


def test_evaluation_passes_by_the_gate():
    with ScriptedServer() as server, engine_on(server) as engine:
        engine.prepare_batch(loader(), workflow())
        groups = engine.run_episodes(rows(9), workflow(n=1))
        assert [group[0].prompt for group in groups] == [f"{i:03d}" for i in range(9)]


def test_an_interrupted_evaluation_ends_without_waiting_for_its_episodes():
    with ScriptedServer(Script(faults=(Fault("hold", times=0),))) as server, engine_on(server) as engine:
        with ThreadPoolExecutor() as threads:
            evaluation = threads.submit(engine.run_episodes, rows(4), workflow(n=1))
            eventually(lambda: server.counts.get("/generate", 0) == 4)
            engine.interrupt()
            with pytest.raises(Interrupted):
                evaluation.result(TIMEOUT_S)
        with pytest.raises(Interrupted):
            engine.run_episodes(rows(4), workflow(n=1))
        server.release()


def test_an_empty_loader_is_refused():
    with ScriptedServer() as server, engine_on(server) as engine, pytest.raises(ValueError, match="yields no rows"):
        engine.prepare_batch([], workflow())


def test_an_engine_without_a_batch_size_is_refused():
    with pytest.raises(ValueError, match=r"rollout\.consumer_batch_size is null"):
        RemoteSGLangEngine(RolloutConfig())


def test_addresses_come_from_the_environment(monkeypatch):
    with ScriptedServer() as first, ScriptedServer() as second:
        monkeypatch.setenv("AREAL_LLM_SERVER_ADDRS", f"{first.address},{second.address}")
        engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=1))
        engine.initialize()
        assert engine.current_servers() == [first.address, second.address]
        engine.destroy()
        engine.destroy()  # a second time does nothing


def test_no_address_at_all_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.delenv("AREAL_LLM_SERVER_ADDRS", raising=False)
    with pytest.raises(ValueError, match="AREAL_LLM_SERVER_ADDRS"):
        RemoteSGLangEngine(RolloutConfig(consumer_batch_size=1)).initialize()
