"""The engine against scripted servers that die, hang, restart, abort and grow in number."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts read better

import asyncio
import time
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest, RemoteSGLangEngine
from areal_trainer.rollout import servers as fleet_module
from areal_trainer.rollout.client import ServerRefusedError
from areal_trainer.rollout.publishing import WeightUpdateError
from areal_trainer.rollout.sampler import GenerationError
from areal_trainer.rollout.servers import NoServerError
from areal_trainer.rollout.workflow import RLVRWorkflow
from areal_trainer.weights import WeightUpdate, publish_to_disk
from support.rollout_fakes import CharTokenizer
from support.scripted_answers import sample as scripted_sample
from support.scripted_server import Fault, Script, ScriptedServer

PROMPT = [11, 12, 13]
GCONFIG = GenerationHyperparameters(max_new_tokens=40, ignore_eos=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(fleet_module, "LONGEST_BACKOFF_S", 0.05)
    monkeypatch.setattr(fleet_module, "PROBE_PERIOD_S", 0.05)
    monkeypatch.setattr(fleet_module, "PROBE_TIMEOUT_S", 0.2)


@pytest.fixture
def published(tmp_path):
    """A directory of weights as the trainer publishes it."""
    policy = SimpleNamespace(
        named_full_tensors=lambda: iter([("a.weight", torch.ones(4))]), save_model_config=lambda directory: None
    )
    return publish_to_disk(policy, run=tmp_path, version=0, dtype=torch.float32, writes=True)


@contextmanager
def engine_on(*servers, **settings):
    start = {name: settings.pop(name) for name in ("weights", "vocab_size") if name in settings}
    config = {"consumer_batch_size": 2, "setup_timeout": 5.0, "request_timeout": 5.0} | settings
    engine = RemoteSGLangEngine(RolloutConfig(**config))
    engine.initialize([server if isinstance(server, str) else server.address for server in servers], **start)
    try:
        yield engine
    finally:
        engine.destroy()


def generate(engine, n=1, prompt=PROMPT, gconfig=GCONFIG, **request):
    return asyncio.run(engine.agenerate_n(ModelRequest(list(prompt), gconfig, **request), n))


def start_generating(engine, n=1, gconfig=GCONFIG):
    return engine._loop.start(engine.agenerate_n(ModelRequest(list(PROMPT), gconfig), n))


def expected(*, index=0, length=40):
    """What an undisturbed server answers to ``PROMPT``."""
    return scripted_sample(Script(), PROMPT, {"max_new_tokens": length, "ignore_eos": True, "temperature": 1.0}, index)


def state_of(engine, server):
    return next(s.state for s in engine._fleet.servers if s.address == server.address)


def eventually(condition, within_s=3.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


# One answer


def test_an_answer_has_tokens_logprobs_and_versions():
    with ScriptedServer() as server, engine_on(server) as engine:
        [response] = generate(engine)
        whole = expected()
        assert response.output_tokens == whole.tokens
        assert response.output_logprobs == whole.logprobs
        assert response.output_versions == [0] * 40
        assert response.stop_reason == "length"
        assert server.weight_version == "v0"  # its own name for base weights, so that a restart shows


def test_n_samples_of_a_prompt_are_one_request_to_one_server():
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        responses = generate(engine, n=8)
        assert [r.output_tokens for r in responses] == [expected(index=i).tokens for i in range(8)]
        assert sorted(server.counts.get("/generate", 0) for server in (first, second)) == [0, 1]


def test_prompts_go_to_the_server_with_the_least_work():
    slow = Script(token_s=0.005)
    with ScriptedServer(slow) as first, ScriptedServer(slow) as second, engine_on(first, second) as engine:
        big = start_generating(engine, n=8)
        eventually(lambda: first.counts.get("/generate", 0) + second.counts.get("/generate", 0) == 1)
        busy, idle = (first, second) if first.counts.get("/generate") else (second, first)
        for small in [start_generating(engine) for _ in range(4)]:
            small.result(5)
        big.result(5)
        assert (busy.counts["/generate"], idle.counts["/generate"]) == (1, 4)


def test_connections_are_used_again():
    with ScriptedServer() as server, engine_on(server) as engine:
        for _ in range(20):
            generate(engine)
        assert len(engine._client._session.connector._conns) == 1


@pytest.mark.parametrize("wrong", [-1, 512])
def test_token_ids_outside_the_vocabulary_are_never_sent(wrong):
    with ScriptedServer(Script(vocab_size=512)) as server, engine_on(server, vocab_size=512) as engine:
        with pytest.raises(ValueError, match=f"token id {wrong} is outside"):
            generate(engine, prompt=[3, wrong])
        assert "/generate" not in server.counts


def test_a_prompt_without_room_to_answer_is_refused():
    with (
        ScriptedServer() as server,
        engine_on(server) as engine,
        pytest.raises(ValueError, match=r"gconfig\.max_tokens"),
    ):
        generate(engine, gconfig=GenerationHyperparameters(max_tokens=3))


def test_what_a_server_refuses_is_an_error_with_its_words_and_no_retry():
    with ScriptedServer(Script(context_length=20)) as server, engine_on(server) as engine:
        with pytest.raises(ServerRefusedError, match="maximum context length of 20"):
            generate(engine)
        assert server.counts["/generate"] == 1


def test_the_api_key_goes_with_every_request(tmp_path, monkeypatch):
    key_file = tmp_path / "key"
    key_file.write_text("secret\n")
    monkeypatch.setenv("AREAL_API_KEY_FILE", str(key_file))
    with ScriptedServer(Script(api_key="secret")) as server, engine_on(server) as engine:
        assert generate(engine)[0].output_versions[0] == 0


def test_a_wrong_api_key_is_named(tmp_path):
    with (
        ScriptedServer(Script(api_key="secret")) as server,
        pytest.raises(NoServerError, match="AREAL_API_KEY_FILE must hold"),
        engine_on(server, setup_timeout=0.3),
    ):
        pass


def test_addresses_come_from_the_environment(monkeypatch):
    with ScriptedServer() as first, ScriptedServer() as second:
        monkeypatch.setenv("AREAL_LLM_SERVER_ADDRS", f"{first.address},{second.address}")
        engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=1))
        engine.initialize()
        assert {s.address for s in engine._fleet.servers if s.state == "current"} == {first.address, second.address}
        engine.destroy()
        engine.destroy()  # a second time does nothing


def test_no_address_at_all_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.delenv("AREAL_LLM_SERVER_ADDRS", raising=False)
    with pytest.raises(ValueError, match="AREAL_LLM_SERVER_ADDRS"):
        RemoteSGLangEngine(RolloutConfig(consumer_batch_size=1)).initialize()


# Interruptions and faults


@pytest.mark.parametrize("n", [1, 3])
def test_an_aborted_answer_is_carried_on_to_the_same_tokens(n):
    script = Script(token_s=0.002, faults=(Fault("abort", delay_s=0.03),))
    with ScriptedServer(script) as server, engine_on(server) as engine:
        responses = generate(engine, n=n)
        assert server.counts["/generate"] == 1 + n  # one by one
        assert responses[0].output_tokens == expected().tokens
        assert [len(r.output_tokens) for r in responses] == [40] * n
        assert responses[0].output_logprobs == expected().logprobs


def test_a_request_aborted_in_the_queue_starts_again():
    script = Script(token_s=0.001, faults=(Fault("abort", delay_s=0.0),))
    with ScriptedServer(script) as server, engine_on(server) as engine:
        assert generate(engine)[0].output_tokens == expected().tokens


def test_endless_aborts_without_a_token_are_an_error(monkeypatch):
    monkeypatch.setattr("areal_trainer.rollout.sampler.RETRY_WAIT_S", 0.001)
    script = Script(latency_s=0.1, faults=(Fault("abort", times=0),))
    with (
        ScriptedServer(script) as server,
        engine_on(server, request_retries=2) as engine,
        pytest.raises(GenerationError, match="aborted 2 times in a row"),
    ):
        generate(engine, rid="episode 7")


@pytest.mark.parametrize("kind", ["die", "cut", "half", "status"])
def test_a_request_whose_server_fails_goes_on_elsewhere(kind):
    with (
        ScriptedServer(Script(faults=(Fault(kind),))) as first,
        ScriptedServer() as second,
        engine_on(first, second) as engine,
    ):
        for _ in range(2):  # one of them meets the fault
            assert generate(engine, n=4)[3].output_tokens == expected(index=3).tokens
        assert first.counts["/generate"] == 1 or kind == "die"
        assert second.counts["/generate"] == 2


def test_tokens_made_before_an_abort_survive_the_death_of_their_server():
    dying = Script(token_s=0.002, faults=(Fault("abort", delay_s=0.05), Fault("die")))
    with ScriptedServer(dying) as first, ScriptedServer(Script(logprob=-9.0)) as second:
        second.kill()
        with engine_on(first, second) as engine:
            request = start_generating(engine)
            eventually(lambda: state_of(engine, first) == "gone")
            second.restart()
            [response] = request.result(5)
            assert response.output_tokens == expected().tokens
            made_first = response.output_logprobs.index(-9.0)
            assert 0 < made_first < 40
            assert response.output_logprobs == expected().logprobs[:made_first] + [-9.0] * (40 - made_first)


def test_one_dead_of_two_leaves_the_other_all_the_work():
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        first.kill()
        for _ in range(6):
            generate(engine)
        assert second.counts["/generate"] == 6
        assert state_of(engine, first) == "gone"


def test_a_hung_server_loses_its_requests_to_another():
    script = Script(faults=(Fault("hang", times=1),))
    with ScriptedServer(script) as first, ScriptedServer() as second:
        with engine_on(first, second, request_timeout=0.3) as engine:
            started = time.monotonic()
            results = [start_generating(engine) for _ in range(2)]
            assert all(result.result(5)[0].output_tokens == expected().tokens for result in results)
            assert 0.3 <= time.monotonic() - started < 2


def test_a_server_that_answers_nothing_any_more_is_given_up_before_the_request_times_out():
    silent = (Fault("hang", times=0), Fault("hang", path="/model_info", times=0, skip=1))
    with ScriptedServer(Script(faults=silent)) as first, ScriptedServer() as second:
        with engine_on(first, second, request_timeout=3600) as engine:
            results = [start_generating(engine) for _ in range(2)]
            for result in results:
                assert result.result(5)[0].output_tokens == expected().tokens
            assert state_of(engine, first) == "gone"


def test_a_request_that_fails_everywhere_is_an_error_after_the_retries(monkeypatch):
    monkeypatch.setattr("areal_trainer.rollout.sampler.RETRY_WAIT_S", 0.001)
    script = Script(faults=(Fault("status", times=0, status=500),))
    with ScriptedServer(script) as server, engine_on(server, request_retries=3) as engine:
        with pytest.raises(GenerationError, match=r"failed 3 times \(rollout.request_retries\).*scripted fault"):
            generate(engine)
        assert server.counts["/generate"] == 3


def test_with_no_server_left_the_error_says_the_state_of_each():
    with ScriptedServer() as server, engine_on(server, setup_timeout=0.4) as engine:
        server.kill()
        with pytest.raises(NoServerError, match=f"{server.address} is gone"):
            generate(engine)


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
        with engine_on(server) as engine:
            engine._loop.run(engine._fleet.control(engine._fleet.servers[0], "/pause_generation", {"mode": "retract"}))
        with engine_on(server) as engine:
            assert generate(engine)[0].output_tokens == expected().tokens


# Weights


def test_an_update_reaches_every_server_and_later_tokens_say_so(published):
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert (first.weight_version, second.weight_version) == ("v1", "v1")
        assert engine.get_version() == 1
        assert generate(engine)[0].output_versions == [1] * 40
        assert first.counts["/continue_generation"] >= 2


def test_servers_load_side_by_side(published):
    slow = Script(load_s=0.3)
    with ScriptedServer(slow) as first, ScriptedServer(slow) as second, engine_on(first, second) as engine:
        started = time.monotonic()
        engine.update_weights(WeightUpdate(1, published))
        assert 0.3 <= time.monotonic() - started < 0.5


def test_a_request_that_runs_across_an_update_tells_which_weights_made_which_token(published):
    with ScriptedServer(Script(token_s=0.01)) as server, engine_on(server) as engine:
        request = start_generating(engine)
        time.sleep(0.15)
        engine.update_weights(WeightUpdate(1, published))
        [response] = request.result(5)
        assert response.output_tokens == expected().tokens
        assert server.counts["/generate"] == 1
        change = response.output_versions.index(1)
        assert 0 < change < 40
        assert response.output_versions == [0] * change + [1] * (40 - change)


def test_requests_made_during_an_update_wait_and_get_the_new_weights(published):
    with ScriptedServer(Script(load_s=0.2)) as server, engine_on(server) as engine:
        update = engine.update_weights_async(WeightUpdate(1, published))
        eventually(lambda: server.counts.get("/update_weights_from_disk", 0) == 1)
        assert engine.get_version() == 0
        assert generate(engine)[0].output_versions == [1] * 40
        update.result(5)


def test_a_refused_update_is_an_error_and_the_server_goes_on(published):
    with ScriptedServer() as server, engine_on(server) as engine:
        with pytest.raises(WeightUpdateError, match=r"no server took weights v1.*does not exist"):
            engine.update_weights(WeightUpdate(1, published / "missing"))
        assert urllib.request.urlopen(f"http://{server.address}/ready", timeout=5).status == 200  # 503 while paused


def test_an_update_that_changes_nothing_is_noticed(published):
    lying = Fault("status", path="/update_weights_from_disk", status=200, body='{"success": true}', times=0)
    with ScriptedServer(Script(faults=(lying,))) as server, engine_on(server) as engine:
        with pytest.raises(WeightUpdateError, match="says that it holds 'v0' after loading v1"):
            engine.update_weights(WeightUpdate(1, published))


def test_a_server_that_dies_in_an_update_does_not_stop_the_other(published):
    dying = Script(faults=(Fault("die", path="/update_weights_from_disk"),))
    with ScriptedServer(dying) as first, ScriptedServer() as second, engine_on(first, second) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert state_of(engine, first) == "gone"
        assert generate(engine)[0].output_versions == [1] * 40
        first.restart()
        eventually(lambda: first.weight_version == "v1" and state_of(engine, first) == "current")


def test_an_update_waits_for_a_single_server_that_restarts_in_it(published):
    restarting = Script(faults=(Fault("restart", path="/update_weights_from_disk", delay_s=0.2),))
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
            assert server.counts["/update_weights_from_disk"] == 1


def test_weights_of_an_unknown_version_need_a_directory_to_load_from():
    with (
        ScriptedServer(Script(weight_version="v7")) as server,
        pytest.raises(NoServerError, match="it says 'v7', not 'v0', and v0 was not published to disk"),
        engine_on(server, setup_timeout=0.3),
    ):
        pass


def test_a_run_that_begins_again_gives_servers_the_base_model_back(tmp_path):
    with ScriptedServer(Script(weight_version="v7")) as server:
        with engine_on(server, weights=WeightUpdate(0, path=tmp_path)) as engine:  # no manifest: not of this run
            assert server.counts["/update_weights_from_disk"] == 1
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


# Batches


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
            engine.update_weights(WeightUpdate(step + 1, published))
        assert taken == [f"{i % 12:03d}" for i in range(16)]


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
    with ScriptedServer(Script(load_s=0.2)) as server, engine_on(server, max_head_offpolicyness=1) as engine:
        engine.prepare_batch(loader(), workflow())
        update = engine.update_weights_async(WeightUpdate(1, published))
        batch = engine.prepare_batch(loader(), workflow())  # made ahead, by the old weights
        assert not update.done()
        assert {t.head_version for t in batch} == {0}
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
        assert [t.prompt for t in engine.wait(2, timeout=5)] == ["000", "000", "001", "001"]


def test_a_wait_has_a_deadline_and_loses_nothing():
    with ScriptedServer(Script(latency_s=0.3)) as server, engine_on(server) as engine:
        for row in rows(2):
            engine.submit(row, workflow())
        with pytest.raises(TimeoutError):
            engine.wait(2, timeout=0.05)
        assert len(engine.wait(2, timeout=5)) == 4


def test_evaluation_passes_by_the_gate():
    with ScriptedServer() as server, engine_on(server) as engine:
        engine.prepare_batch(loader(), workflow())
        groups = engine.run_episodes(rows(9), workflow(n=1))
        assert [group[0].prompt for group in groups] == [f"{i:03d}" for i in range(9)]


def test_an_empty_loader_is_refused():
    with ScriptedServer() as server, engine_on(server) as engine, pytest.raises(ValueError, match="gives no rows"):
        engine.prepare_batch([], workflow())


def test_an_engine_without_a_batch_size_is_refused():
    with pytest.raises(ValueError, match=r"rollout\.consumer_batch_size is null"):
        RemoteSGLangEngine(RolloutConfig())


def test_a_restarted_server_is_not_given_files_that_were_damaged_since(published):
    with ScriptedServer() as first, ScriptedServer() as second:
        with engine_on(first, second) as engine:
            engine.update_weights(WeightUpdate(1, published))
            weights = published / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1])
            second.kill()
            second.restart()
            deadline = time.monotonic() + 5
            while "bytes, the manifest says" not in engine._fleet.states():
                assert time.monotonic() < deadline, engine._fleet.states()
                time.sleep(0.02)
            assert second.counts.get("/update_weights_from_disk", 0) == 0
            assert len(generate(engine)) == 1
