"""POST /pause_generation, /continue_generation and /abort_request, and their effect on running requests."""

from __future__ import annotations

import asyncio

import pytest

from .conftest import Server, request

PROMPT = [5, 9, 14, 33, 21]
LONG = 400


@pytest.mark.parametrize("mode", ["retract", "in_place"])
async def test_paused_request_resumes_after_continue(server: Server, mode: str) -> None:
    task = await server.start(PROMPT, max_new_tokens=LONG, ignore_eos=True)
    assert (await server.post("/pause_generation", {"mode": mode})).status_code == 200
    await asyncio.sleep(0.5)
    assert not task.done()
    assert (await server.post("/continue_generation", {})).status_code == 200
    answer = (await task).json()
    assert answer["meta_info"]["finish_reason"]["type"] == "length"
    assert len(answer["meta_info"]["output_token_logprobs"]) == LONG


async def test_mode_abort_returns_partial_completions(server: Server) -> None:
    task = await server.start(PROMPT, max_new_tokens=LONG, ignore_eos=True)
    await asyncio.sleep(0.1)
    assert (await server.post("/pause_generation", {"mode": "abort"})).status_code == 200
    response = await task
    answer = response.json()
    assert response.status_code == 200
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < len(answer["output_ids"]) < LONG
    assert len(answer["meta_info"]["output_token_logprobs"]) == len(answer["output_ids"])


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
async def test_new_requests_wait_while_paused(server: Server, mode: str) -> None:
    await server.post("/pause_generation", {"mode": mode})
    task = asyncio.create_task(server.post("/generate", request(PROMPT, max_new_tokens=2, ignore_eos=True)))
    server.tasks.append(task)
    await asyncio.sleep(0.3)
    assert not task.done()
    await server.post("/continue_generation", {})
    assert len((await task).json()["output_ids"]) == 2


async def test_paused_server_is_not_ready(server: Server) -> None:
    assert (await server.get("/ready")).status_code == 200
    await server.post("/pause_generation", {"mode": "retract"})
    assert (await server.get("/ready")).status_code == 503
    await server.post("/continue_generation", {})
    assert (await server.get("/ready")).status_code == 200


async def test_unknown_mode_is_rejected(server: Server) -> None:
    response = await server.post("/pause_generation", {"mode": "gently"})
    assert 400 <= response.status_code < 500
    assert (await server.get("/ready")).status_code == 200


async def test_continue_without_a_pause_does_nothing(server: Server) -> None:
    assert (await server.post("/continue_generation", {})).status_code == 200


async def test_abort_by_id_returns_the_partial_completion(server: Server) -> None:
    aborted = await server.start(PROMPT, rid="aborted", max_new_tokens=LONG, ignore_eos=True)
    other = await server.start(PROMPT, rid="other", max_new_tokens=LONG, ignore_eos=True)
    await asyncio.sleep(0.1)
    assert (await server.post("/abort_request", {"rid": "aborted"})).status_code == 200
    answer = (await aborted).json()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < len(answer["output_ids"]) < LONG
    assert (await other).json()["meta_info"]["finish_reason"]["type"] == "length"


async def test_abort_all_ends_every_request(server: Server) -> None:
    tasks = [await server.start(PROMPT, max_new_tokens=LONG, ignore_eos=True) for _ in range(3)]
    assert (await server.post("/abort_request", {"rid": "", "abort_all": True})).status_code == 200
    for task in tasks:
        assert (await task).json()["meta_info"]["finish_reason"]["type"] == "abort"


async def test_abort_all_ends_every_sample_of_a_request(server: Server) -> None:
    task = await server.start(PROMPT, n=3, max_new_tokens=LONG, ignore_eos=True)
    await asyncio.sleep(0.1)
    await server.post("/abort_request", {"rid": "", "abort_all": True})
    answers = (await task).json()
    assert [answer["meta_info"]["finish_reason"]["type"] for answer in answers] == ["abort"] * 3


async def test_abort_by_id_does_not_reach_requests_with_several_samples(server: Server) -> None:
    task = await server.start(PROMPT, rid="several", n=2, max_new_tokens=200, ignore_eos=True)
    assert (await server.post("/abort_request", {"rid": "several"})).status_code == 200
    answers = (await task).json()
    assert [answer["meta_info"]["finish_reason"]["type"] for answer in answers] == ["length"] * 2


async def test_aborting_an_unknown_id_is_no_error(server: Server) -> None:
    assert (await server.post("/abort_request", {"rid": "unknown"})).status_code == 200
