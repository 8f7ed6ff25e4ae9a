"""An endpoint that speaks OpenAI's protocol with answers that the test sets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class JudgeServer:
    """``answer`` maps a request to the judge's text, or to a response."""

    answer: Callable[[dict[str, Any]], str | web.Response]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        answer = self.answer(body)
        if isinstance(answer, web.Response):
            return answer
        usage = {"prompt_tokens": 1000, "completion_tokens": 100}
        return web.json_response({"choices": [{"message": {"content": answer}}], "usage": usage})


@contextlib.asynccontextmanager
async def judging(answer: Callable[[dict[str, Any]], str | web.Response]) -> AsyncIterator[JudgeServer]:
    """A judge on a free port."""
    server = JudgeServer(answer)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()
