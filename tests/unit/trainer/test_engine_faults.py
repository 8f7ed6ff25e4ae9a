"""The engine against scripted servers that die, hang, restart, abort and come later."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts read better

import pytest

from areal_trainer.servers import fleet as fleet_module
from areal_trainer.servers.fleet import NoServerError
from areal_trainer.servers.sampler import GenerationError
from support.engines import LONGEST_S, engine_on, eventually, expected, generate, look_often, start_generating, state_of
from support.scripted_server import Fault, Script, ScriptedServer


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    look_often(monkeypatch)


@pytest.mark.parametrize("n", [1, 3])
def test_an_aborted_answer_is_carried_on_to_the_same_tokens(n):
    script = Script(token_s=0.01, faults=(Fault("abort", delay_s=0.03),))
    with ScriptedServer(script) as server, engine_on(server) as engine:
        responses = generate(engine, n=n)
        assert server.counts["/generate"] == 1 + n  # one by one
        assert responses[0].output_tokens == expected().tokens
        assert [len(r.output_tokens) for r in responses] == [40] * n
        assert responses[0].output_logprobs == expected().logprobs


def test_samples_of_a_prompt_that_are_carried_on_have_request_ids_of_their_own():
    """A server refuses an id that is in use."""
    script = Script(token_s=0.01, faults=(Fault("abort", delay_s=0.03),))
    with ScriptedServer(script) as server, engine_on(server) as engine:
        responses = generate(engine, n=3, rid="episode 7")
        assert responses[0].output_tokens == expected().tokens
        assert server.counts["/generate"] == 4


def test_a_request_aborted_in_the_queue_starts_again():
    script = Script(token_s=0.001, faults=(Fault("abort", delay_s=0.0),))
    with ScriptedServer(script) as server, engine_on(server) as engine:
        assert generate(engine)[0].output_tokens == expected().tokens


def test_endless_aborts_without_a_token_are_an_error(monkeypatch):
    monkeypatch.setattr("areal_trainer.servers.sampler.RETRY_WAIT_S", 0.001)
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
    dying = Script(token_s=0.02, faults=(Fault("abort", delay_s=0.05), Fault("die")))
    with ScriptedServer(dying) as first, ScriptedServer(Script(logprob=-9.0)) as second:
        second.kill()
        with engine_on(first, second) as engine:
            request = start_generating(engine)
            eventually(lambda: state_of(engine, first) == "gone")
            second.restart()
            [response] = request.result(LONGEST_S)
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
            results = [start_generating(engine) for _ in range(2)]
            assert all(result.result(LONGEST_S)[0].output_tokens == expected().tokens for result in results)
            assert second.counts["/generate"] >= 2


def test_a_server_that_answers_nothing_any_more_is_given_up_before_the_request_times_out(monkeypatch):
    monkeypatch.setattr(fleet_module, "PROBE_TIMEOUT_S", 0.2)
    silent = (Fault("hang", times=0), Fault("hang", path="/model_info", times=0, skip=1))
    with ScriptedServer(Script(faults=silent)) as first, ScriptedServer() as second:
        with engine_on(first, second, request_timeout=3600) as engine:
            results = [start_generating(engine) for _ in range(2)]
            for result in results:
                assert result.result(LONGEST_S)[0].output_tokens == expected().tokens
            assert state_of(engine, first) == "gone"


def test_a_request_that_fails_everywhere_is_an_error_after_the_retries(monkeypatch):
    monkeypatch.setattr("areal_trainer.servers.sampler.RETRY_WAIT_S", 0.001)
    script = Script(faults=(Fault("status", times=0, status=500),))
    with ScriptedServer(script) as server, engine_on(server, request_retries=3) as engine:
        with pytest.raises(GenerationError, match=r"failed 3 times \(rollout.request_retries\).*scripted fault"):
            generate(engine)
        assert server.counts["/generate"] == 3


def test_with_no_server_left_the_error_says_the_state_of_each():
    with ScriptedServer() as server, engine_on(server, setup_timeout=1.0) as engine:
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
