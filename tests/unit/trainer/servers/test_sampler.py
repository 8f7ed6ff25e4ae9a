"""Completions from scripted servers, including servers that die, hang, restart and abort requests."""

# ruff: noqa: SIM117  servers first, then the engine on them: nested contexts are easier to read

import pytest

from areal_api.generation import GenerationHyperparameters
from areal_trainer.routing import Routing
from areal_trainer.servers.client import ServerRefusedError
from areal_trainer.servers.control import ServerTimings
from areal_trainer.servers.sampler import GenerationError
from support.engines import (
    PROMPT,
    TIMEOUT_S,
    engine_on,
    eventually,
    expected,
    generate,
    start_generating,
    state_of,
)
from support.scripted_answers import routed_experts
from support.scripted_server import Fault, Script, ScriptedServer


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


def test_endless_aborts_without_a_token_are_an_error():
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
            [response] = request.result(TIMEOUT_S)
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
            assert all(result.result(TIMEOUT_S)[0].output_tokens == expected().tokens for result in results)
            assert second.counts["/generate"] >= 2


def test_a_server_that_answers_nothing_any_more_is_given_up_before_the_request_times_out():
    timings = ServerTimings(probe_period_s=0.05, probe_timeout_s=0.2, max_backoff_s=0.05)
    silent = (Fault("hang", times=0), Fault("hang", path="/model_info", times=0, skip=1))
    with ScriptedServer(Script(faults=silent)) as first, ScriptedServer() as second:
        with engine_on(first, second, request_timeout=3600, timings=timings) as engine:
            results = [start_generating(engine) for _ in range(2)]
            for result in results:
                assert result.result(TIMEOUT_S)[0].output_tokens == expected().tokens
            assert state_of(engine, first) == "gone"


def test_a_request_that_fails_everywhere_is_an_error_after_the_retries():
    script = Script(faults=(Fault("status", times=0, status=500),))
    with ScriptedServer(script) as server, engine_on(server, request_retries=3) as engine:
        with pytest.raises(GenerationError, match=r"failed 3 times \(rollout.request_retries\).*scripted fault"):
            generate(engine)
        assert server.counts["/generate"] == 3


ROUTING = Routing(layers=3, with_experts=(0, 2), top_k=2, experts=8)
EXPERTS = (3, 2, 8)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("delay_s", [0.0, 0.03])
def test_experts_of_an_aborted_answer_are_carried_on(n, delay_s):
    script = Script(token_s=0.01, experts=EXPERTS, faults=(Fault("abort", delay_s=delay_s),))
    with ScriptedServer(script) as server, engine_on(server, routing=ROUTING) as engine:
        for response in generate(engine, n=n):
            tokens = [*PROMPT, *response.output_tokens][:-1]
            assert response.experts.tolist() == ROUTING.decode(routed_experts(EXPERTS, tokens, 0), 42).tolist()
        assert server.counts["/generate"] == 1 + n


def test_a_server_that_reports_no_experts_or_wrong_ones_is_an_error():
    with ScriptedServer() as server, engine_on(server, routing=ROUTING) as engine:
        with pytest.raises(ValueError, match=r"no routed experts, which actor\.router_replay trains with"):
            generate(engine)
    with ScriptedServer(Script(experts=(2, 2, 8))) as server, engine_on(server, routing=ROUTING) as engine:
        with pytest.raises(ValueError, match=r"it runs another model than actor\.path"):
            generate(engine)


def test_experts_are_only_asked_for_if_they_are_recorded():
    with ScriptedServer(Script(experts=EXPERTS)) as server, engine_on(server) as engine:
        assert generate(engine)[0].experts is None
