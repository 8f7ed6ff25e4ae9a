"""POST /generate: token IDs in, token IDs and log-probs out."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from support.reference_logprobs import greedy, output_logprobs
from support.tiny_policy import VOCABULARY

from .conftest import CONTEXT, EOS, Server, request

PROMPT = [5, 9, 14, 33, 21]


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [logprob for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]]


def largest_difference(model: Path, prompt: list[int], answer: dict[str, Any], temperature: float = 1.0) -> float:
    expected = output_logprobs(model, prompt, answer["output_ids"], temperature)
    return max(abs(a - b) for a, b in zip(logprobs(answer), expected, strict=True))


async def test_every_output_token_has_a_logprob(server: Server) -> None:
    answer = await server.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
    ids, meta = answer["output_ids"], answer["meta_info"]
    assert len(ids) == 12
    assert [entry[1] for entry in meta["output_token_logprobs"]] == ids
    assert all(logprob <= 0.0 for logprob in logprobs(answer))
    assert meta["prompt_tokens"] == len(PROMPT)
    assert meta["completion_tokens"] == 12


async def test_the_cache_finds_all_of_an_earlier_request_but_its_last_token(server: Server) -> None:
    prompt = list(range(30, 50))
    first = await server.generate(prompt, max_new_tokens=8, ignore_eos=True)
    history = [*prompt, *first["output_ids"]]
    continued = await server.generate([*history, 51, 52], max_new_tokens=2, ignore_eos=True)
    branch = await server.generate([*prompt, 2 if first["output_ids"][0] != 2 else 3, 5], max_new_tokens=2)
    again = await server.generate(prompt, max_new_tokens=2)
    found = [answer["meta_info"]["cached_tokens"] for answer in (continued, branch, again)]
    assert found == [len(history) - 1, len(prompt), len(prompt) - 1]
    assert (await server.post("/flush_cache", {})).status_code == 200
    assert (await server.generate(prompt, max_new_tokens=2))["meta_info"]["cached_tokens"] == 0


async def test_logprobs_are_returned_only_on_request(server: Server) -> None:
    response = await server.post("/generate", {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 2}})
    assert "output_token_logprobs" not in response.json()["meta_info"]


async def test_finish_reason_at_the_limit_is_length(server: Server) -> None:
    answer = await server.generate(PROMPT, max_new_tokens=3, ignore_eos=True)
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 3}


async def test_stop_token_ends_the_completion_and_is_included(server: Server) -> None:
    stops = list(range(2, VOCABULARY))
    answer = await server.generate(PROMPT, max_new_tokens=50, stop_token_ids=stops)
    reason = answer["meta_info"]["finish_reason"]
    assert reason["type"] == "stop"
    assert reason["matched"] == answer["output_ids"][-1]
    assert reason["matched"] in [EOS, *stops]
    assert len(logprobs(answer)) == len(answer["output_ids"])


async def test_n_samples_are_a_list_with_distinct_ids(server: Server) -> None:
    answers = await server.generate(PROMPT, n=4, max_new_tokens=16, ignore_eos=True)
    assert len(answers) == 4
    assert len({answer["meta_info"]["id"] for answer in answers}) == 4
    assert len({tuple(answer["output_ids"]) for answer in answers}) == 4
    assert all(len(logprobs(answer)) == 16 for answer in answers)


async def test_single_sample_is_an_object_with_the_request_id(server: Server) -> None:
    answer = await server.generate(PROMPT, rid="single-sample", n=1, max_new_tokens=2)
    assert answer["meta_info"]["id"] == "single-sample"


async def test_responses_have_the_weight_version_of_every_token(server: Server) -> None:
    answer = await server.generate(PROMPT, max_new_tokens=5, ignore_eos=True)
    version = await server.version()
    assert answer["meta_info"]["weight_version"] == version
    assert answer["meta_info"]["weight_versions"] == [{"version": version, "start": 0, "end": 5}]


async def test_unknown_sampling_parameter_is_rejected(server: Server) -> None:
    response = await server.post("/generate", request(PROMPT, max_new_tokens=2, temperatur=1.0))
    assert response.status_code == 400
    assert "temperatur" in response.json()["error"]


async def test_unknown_request_field_is_ignored(server: Server) -> None:
    response = await server.post("/generate", {**request(PROMPT, max_new_tokens=2), "no_such_field": 1})
    assert response.status_code == 200


@pytest.mark.parametrize(("prompt_tokens", "limit"), [(CONTEXT + 10, 1), (CONTEXT - 10, 100)])
async def test_request_beyond_the_context_is_rejected(server: Server, prompt_tokens: int, limit: int) -> None:
    response = await server.post("/generate", request([7] * prompt_tokens, max_new_tokens=limit))
    assert response.status_code == 400
    assert str(CONTEXT) in response.json()["error"]["message"]


async def test_duplicate_request_id_is_rejected(server: Server) -> None:
    first = await server.start(PROMPT, rid="twice", max_new_tokens=400, ignore_eos=True)
    response = await server.post("/generate", request(PROMPT, rid="twice", max_new_tokens=2))
    assert response.status_code == 400
    assert "twice" in response.json()["error"]["message"]
    assert not first.done()


async def test_disconnected_client_does_not_affect_the_server(server: Server) -> None:
    task = await server.start(PROMPT, max_new_tokens=1000, ignore_eos=True)
    server.tasks.remove(task)
    task.cancel()
    assert len((await server.generate(PROMPT, max_new_tokens=3, ignore_eos=True))["output_ids"]) == 3


# Tests that need a model


@pytest.mark.real
async def test_logprobs_equal_those_of_transformers(sglang: Server, model: Path) -> None:
    """Concurrent prompts of all lengths, some prefilled in several chunks, some sharing a cached prefix."""
    drawn = random.Random(0)
    shared = [drawn.randrange(3, VOCABULARY) for _ in range(90)]
    lengths = [1, 2, 3, 17, 40, 64, 65, 130, 300, 700]
    prompts = [[drawn.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]
    prompts += [[*shared[:length], drawn.randrange(3, VOCABULARY)] for length in (20, 60, 90, 90)]
    for _ in range(2):
        answers = await asyncio.gather(*(sglang.generate(p, max_new_tokens=30, ignore_eos=True) for p in prompts))
        assert max(largest_difference(model, p, a) for p, a in zip(prompts, answers, strict=True)) < 1e-4


@pytest.mark.real
async def test_logprobs_of_n_samples_equal_those_of_transformers(sglang: Server, model: Path) -> None:
    answers = await sglang.generate(PROMPT * 9, n=8, max_new_tokens=40, ignore_eos=True)
    assert max(largest_difference(model, PROMPT * 9, answer) for answer in answers) < 1e-4


@pytest.mark.real
@pytest.mark.parametrize("sampling", [{"temperature": 0.6}, {"temperature": 1.3, "top_p": 0.5, "top_k": 20}])
async def test_logprobs_are_scaled_by_temperature_and_not_renormalised(
    sglang: Server, model: Path, sampling: dict[str, Any]
) -> None:
    answer = await sglang.generate(PROMPT, max_new_tokens=30, ignore_eos=True, **sampling)
    assert largest_difference(model, PROMPT, answer, sampling["temperature"]) < 1e-4


@pytest.mark.real
async def test_temperature_zero_is_greedy(sglang: Server, model: Path) -> None:
    answer = await sglang.generate(PROMPT, max_new_tokens=20, temperature=0.0, ignore_eos=True)
    assert answer["output_ids"] == greedy(model, PROMPT, 20)


@pytest.mark.real
async def test_continuing_from_generated_tokens_gives_the_same_distribution(sglang: Server, model: Path) -> None:
    start = await sglang.generate(PROMPT, max_new_tokens=10, ignore_eos=True)
    longer = PROMPT + start["output_ids"]
    answer = await sglang.generate(longer, max_new_tokens=10, ignore_eos=True)
    assert largest_difference(model, longer, answer) < 1e-4


@pytest.mark.real
async def test_no_sampled_id_is_beyond_the_vocabulary(sglang: Server) -> None:
    """SGLang pads the vocabulary to a multiple of 64."""
    answers = await sglang.generate(PROMPT, n=8, max_new_tokens=100, temperature=5.0, ignore_eos=True)
    assert max(max(answer["output_ids"]) for answer in answers) < VOCABULARY
