"""Fixtures for the server contract: the scripted server and the real SGLang (mark: real)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.real_server import RealServer, real_server
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY, save_tiny_model

KEY = "contract-key"
CONTEXT = 2048
EOS = 1


@dataclass
class Server:
    """A server under test and helpers for requests to it."""

    address: str
    client: httpx.AsyncClient
    tasks: list[asyncio.Task[httpx.Response]] = field(default_factory=list)

    async def post(self, path: str, body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)

    async def generate(self, input_ids: list[int], rid: str | None = None, **sampling_params: Any) -> Any:
        """The response body; asserts success."""
        response = await self.post("/generate", request(input_ids, rid, **sampling_params))
        assert response.status_code == 200, response.text
        return response.json()

    async def start(self, input_ids: list[int], rid: str | None = None, **sampling_params: Any) -> asyncio.Task[Any]:
        """Start a request and return once it is running; the task's result is the response."""
        before = await self.running()
        task = asyncio.create_task(self.post("/generate", request(input_ids, rid, **sampling_params)))
        self.tasks.append(task)
        for _ in range(500):
            if await self.running() > before:
                return task
            await asyncio.sleep(0.01)
        raise TimeoutError("the request was not running after 5 s")

    async def running(self) -> int:
        """Number of samples being decoded."""
        loads = (await self.get("/v1/loads")).json()["loads"]
        return sum(load["num_running_reqs"] for load in loads)

    async def version(self) -> str:
        return str((await self.get("/model_info")).json()["weight_version"])

    async def settle(self) -> None:
        """Resume generation and abort all requests."""
        await self.post("/continue_generation", {})
        await self.post("/abort_request", {"rid": "", "abort_all": True})
        await asyncio.gather(*self.tasks, return_exceptions=True)


def request(input_ids: list[int], rid: str | None = None, **sampling_params: Any) -> dict[str, Any]:
    body = {"input_ids": input_ids, "sampling_params": sampling_params, "return_logprob": True}
    return body if rid is None else {**body, "rid": rid}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose vocabulary SGLang pads."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The same model with different weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("other")
    weights = AutoModelForCausalLM.from_pretrained(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in weights.parameters():
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    weights.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def _scripted() -> Iterator[ScriptedServer]:
    script = Script(
        vocab_size=VOCABULARY, context_length=CONTEXT, eos_token_id=EOS, token_s=0.002, api_key=KEY, prefix_cache=True
    )
    with ScriptedServer(script) as server:
        yield server


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real server's API key file."""
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY + "\n")
    return file


@pytest.fixture(scope="session")
def _real(tmp_path_factory: pytest.TempPathFactory, model: Path, key_file: Path) -> Iterator[RealServer]:
    directory = tmp_path_factory.mktemp("server")
    # A small chunk, so that prompts of a few hundred tokens are prefilled in several.
    with real_server(directory, model, api_key_file=key_file, chunked_prefill_size=256) as server:
        yield server


async def _client(address: str) -> AsyncIterator[Server]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=60.0) as client:
        server = Server(address, client)
        yield server
        await server.settle()


@pytest.fixture(params=["scripted", pytest.param("real", marks=pytest.mark.real)])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """Each server in turn, for behaviour that both share."""
    running: ScriptedServer | RealServer = request.getfixturevalue(f"_{request.param}")
    async for client in _client(running.address):
        yield client


@pytest.fixture
async def sglang(_real: RealServer, model: Path) -> AsyncIterator[Server]:
    """The real server with its initial weights, for tests that need a model."""
    async for client in _client(_real.address):
        if await client.version() != "default":
            body = {"model_path": str(model), "weight_version": "default"}
            assert (await client.post("/update_weights_from_disk", body)).status_code == 200
        yield client


@pytest.fixture
def real_process(_real: RealServer) -> RealServer:
    """The real server's process and log."""
    return _real
