"""One request to scripted servers: its answer, where it goes, and what is refused."""

import pytest

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.servers.client import ServerRefusedError
from areal_trainer.servers.fleet import NoServerError
from areal_trainer.servers.generation import Answer, Draft, FinishReason, Meta, Span, TokenLogprob, WrongVersionError
from support.engines import LONGEST_S, engine_on, eventually, expected, generate, look_often, start_generating
from support.scripted_server import Fault, Script, ScriptedServer


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    look_often(monkeypatch)


def test_an_answer_has_tokens_logprobs_and_versions():
    with ScriptedServer() as server, engine_on(server) as engine:
        [response] = generate(engine)
        whole = expected()
        assert response.output_tokens == whole.tokens
        assert response.output_logprobs == whole.logprobs
        assert response.output_versions == [0] * 40
        assert response.stop_reason == "length"
        assert server.weight_version == "v0"  # its own name for base weights, so that a restart shows


@pytest.mark.parametrize("said", ["v2", "v5", "default"])
def test_an_answer_by_weights_out_of_force_is_told(said):
    meta = Meta(FinishReason("stop"), weight_versions=[Span(said, 0, 1)], output_token_logprobs=[TokenLogprob(-1.0, 7)])
    with pytest.raises(WrongVersionError, match=f"it says '{said}', not v3 … v4"):
        Draft.of_answer(Answer(meta), oldest=3, newest=4, limit=9)


def test_n_samples_of_a_prompt_are_one_request_to_one_server():
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        responses = generate(engine, n=8)
        assert [r.output_tokens for r in responses] == [expected(index=i).tokens for i in range(8)]
        assert sorted(server.counts.get("/generate", 0) for server in (first, second)) == [0, 1]


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
            request.result(LONGEST_S)


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
        engine_on(server, setup_timeout=1.0),
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
