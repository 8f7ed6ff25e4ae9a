"""POST /generate with return_routed_experts: the experts of every token but the last, for models that have some."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch

from areal_trainer.batch import pack
from areal_trainer.model.policy import Policy
from areal_trainer.routing import Experts, Routing
from areal_trainer.trajectory import Trajectory
from support.real_server import RealServer, real_server
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY, actor_config, save_tiny_model

from .conftest import CONTEXT, EOS, KEY, Server, _client, request

PROMPT = [5, 9, 14, 33, 21]
ROUTING = Routing(layers=3, with_experts=(0, 1, 2), top_k=2, experts=8)
MODEL = {
    "num_hidden_layers": 3,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "tied": False,
    "max_position_embeddings": CONTEXT,
}


@pytest.fixture(scope="module")
def experts_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("experts"), "qwen3_moe", **MODEL)


@pytest.fixture(scope="module", params=["scripted", pytest.param("real", marks=pytest.mark.real)])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, experts_model: Path
) -> Iterator[ScriptedServer | RealServer]:
    with contextlib.ExitStack() as stack:
        if request.param == "scripted":
            script = Script(
                vocab_size=VOCABULARY,
                context_length=CONTEXT,
                eos_token_id=EOS,
                token_s=0.002,
                api_key=KEY,
                experts=(3, 2, 8),
            )
            yield stack.enter_context(ScriptedServer(script))
            return
        folder = tmp_path_factory.mktemp("server")
        (folder / "key").write_text(KEY)
        yield stack.enter_context(real_server(folder, experts_model, api_key_file=folder / "key", replay=True))


@pytest.fixture
async def server(running: ScriptedServer | RealServer) -> AsyncIterator[Server]:
    async for client in _client(running.address):
        yield client


async def ask(server: Server, input_ids: list[int], *, start: int = 0, **sampling_params: Any) -> Any:
    asked = {"return_routed_experts": True, "routed_experts_start_len": start}
    response = await server.post("/generate", request(input_ids, **sampling_params) | asked)
    assert response.status_code == 200, response.text
    return response.json()


def decoded(answer: dict[str, Any], tokens: int) -> Experts:
    return ROUTING.decode(base64.b64decode(answer["meta_info"]["routed_experts"]), tokens)


async def test_every_token_but_the_last_has_experts(server: Server) -> None:
    answer = await ask(server, PROMPT, max_new_tokens=7, ignore_eos=True)
    assert decoded(answer, len(PROMPT) + 7 - 1).shape == (11, 3, 2)
    plain = await server.generate(PROMPT, max_new_tokens=2)
    assert "routed_experts" not in plain["meta_info"]


async def test_every_sample_has_those_of_the_prompt(server: Server) -> None:
    answers = await ask(server, PROMPT, n=3, max_new_tokens=6, ignore_eos=True, temperature=1.0)
    found = [decoded(answer, len(PROMPT) + 5) for answer in answers]
    assert len(found) == 3
    assert all(np.array_equal(one[: len(PROMPT)], found[0][: len(PROMPT)]) for one in found)


async def test_a_continuation_reports_the_rest(server: Server) -> None:
    whole = await ask(server, PROMPT, max_new_tokens=9, ignore_eos=True, temperature=0)
    first = await ask(server, PROMPT, max_new_tokens=4, ignore_eos=True, temperature=0)
    history = PROMPT + first["output_ids"]
    known = len(history) - 1
    rest = await ask(server, history, start=known, max_new_tokens=5, ignore_eos=True, temperature=0)
    assert rest["output_ids"] == whole["output_ids"][4:]
    joined = np.concatenate([decoded(first, known), decoded(rest, 5)])
    assert np.array_equal(joined, decoded(whole, len(PROMPT) + 8))


async def test_an_aborted_answer_has_those_of_its_tokens(server: Server) -> None:
    body = request(PROMPT, max_new_tokens=1500, ignore_eos=True) | {"return_routed_experts": True}
    before = await server.running()
    task: asyncio.Task[httpx.Response] = asyncio.create_task(server.post("/generate", body))
    server.tasks.append(task)
    while await server.running() == before:
        await asyncio.sleep(0.01)
    await server.post("/abort_request", {"rid": "", "abort_all": True})
    answer = (await task).json()
    count = len(answer["output_ids"])
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    if count:
        decoded(answer, len(PROMPT) + count - 1)


@pytest.mark.parametrize("running", [pytest.param("real", marks=pytest.mark.real)], indirect=True)
async def test_the_trainer_with_the_servers_experts_has_its_log_probs(server: Server, experts_model: Path) -> None:
    answer = await ask(server, PROMPT, max_new_tokens=60, ignore_eos=True, temperature=1.0)
    ids, tokens = PROMPT + answer["output_ids"], len(PROMPT) + 60
    mask = [position >= len(PROMPT) for position in range(tokens)]
    logprobs = [0.0] * len(PROMPT) + [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    sample = Trajectory.of_lists(
        input_ids=ids, loss_mask=mask, logprobs=logprobs, versions=[0 if made else -1 for made in mask], reward=0.0,
        prompt_len=len(PROMPT), finish_reason="length", experts=decoded(answer, tokens - 1),
    )  # fmt: skip
    policy = Policy(actor_config(experts_model, router_replay=True), device="cpu", total_steps=1, seed=0)
    assert policy.routing == ROUTING
    for one in (sample, msgspec.structs.replace(sample, experts=None)):  # in float32 both choose the same experts
        difference_T = policy.logprobs(pack([one])) - torch.from_numpy(sample.logprobs)
        assert difference_T.abs().max() < 1e-4
