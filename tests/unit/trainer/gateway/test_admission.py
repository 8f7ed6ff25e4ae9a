"""What requests in progress may occupy is bounded."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI, Request

from areal_trainer.gateway.admission import Admission
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.http import json_response


def client_of(hold: asyncio.Event, **bounds: int) -> httpx.AsyncClient:
    app = FastAPI()

    async def work(request: Request) -> object:
        body = await request.body()
        await hold.wait()
        return json_response({"bytes": len(body)})

    async def refused(request: Request, error: Exception) -> object:
        assert isinstance(error, GatewayError)
        return json_response({"error": error.message}, status=error.status)

    app.add_api_route("/v1/messages", work, methods=["POST"], response_model=None)
    app.add_exception_handler(GatewayError, refused)  # type: ignore[arg-type]
    app.add_middleware(Admission, **bounds)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_more_requests_than_allowed_are_refused_in_the_protocol_s_form() -> None:
    hold = asyncio.Event()
    async with client_of(hold, max_requests=2) as client:
        calls = [asyncio.create_task(client.post("/v1/messages", content=b"x")) for _ in range(3)]
        [refused_call], running = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        refused = refused_call.result()
        assert refused.status_code == 429
        assert refused.json()["type"] == "error"
        hold.set()
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        assert (await client.post("/v1/messages", content=b"x")).status_code == 200


async def test_bodies_of_requests_in_progress_are_bounded_together() -> None:
    hold = asyncio.Event()
    hold.set()
    async with client_of(hold, max_bytes=100) as client:
        assert (await client.post("/v1/messages", content=b"x" * 100)).json() == {"bytes": 100}
        refused = await client.post("/v1/messages", content=b"x" * 101)
        assert (refused.status_code, "hold 0 bytes" in refused.json()["error"]) == (429, True)
        assert (await client.post("/v1/messages", content=b"x" * 100)).status_code == 200
