"""The HTTP server of the page: read-only, for whoever has its token."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from areal_launcher.run_files import MAX_STEP
from areal_launcher.ui.page import Page
from areal_launcher.ui.sample_routes import sample_routes
from areal_launcher.ui.source import Runs, ShownRun

STATIC = FilePath(__file__).with_name("static")
COOKIE = "grpo_ui"
POLL_S = 1.0
LOADING_POLL_S = 0.05  # while the file is longer than what was read
MAX_LIVE = 64  # open streams
MAX_POINTS = 4_000
MAX_SERIES = 64
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


REFUSAL = JSONResponse({"detail": "open the address that grpo ui printed; it contains the token"}, status_code=403)


def create_app(runs: Runs, token: str) -> FastAPI:
    """The application. Every request needs ``token``, as the cookie that ``/?token=…`` sets."""
    app = FastAPI(title="grpo ui", docs_url=None, redoc_url=None, openapi_url=None)
    page = Page(runs)

    app.add_middleware(Guard, token=token)

    @app.get("/")
    async def index(request: Request) -> Response:
        if "token" in request.query_params:
            response: Response = RedirectResponse("/", status_code=303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return response
        return PlainTextResponse((STATIC / "index.html").read_text(), media_type="text/html; charset=utf-8")

    @app.get("/api/runs")
    async def listed() -> list[dict[str, Any]]:
        return await page.runs()

    @app.get("/api/runs/{identifier}")
    async def run(identifier: str) -> dict[str, Any]:
        entry = page.find(identifier)
        await page.poll(entry)
        return await page.overview(entry)

    @app.get("/api/runs/{identifier}/configuration")
    async def configuration(identifier: str) -> Response:
        return PlainTextResponse(await asyncio.to_thread(page.find(identifier).configuration))

    @app.get("/api/runs/{identifier}/series")
    async def series(
        identifier: str,
        name: Annotated[list[str], Query(max_length=MAX_SERIES)],
        first: Annotated[int, Query(ge=0, le=MAX_STEP)] = 0,
        last: Annotated[int, Query(ge=0, le=MAX_STEP)] = MAX_STEP,
        points: Annotated[int, Query(ge=2, le=MAX_POINTS)] = 1_000,
        after: Annotated[int, Query(ge=0, le=MAX_STEP)] = 0,
    ) -> dict[str, Any]:
        return await page.series(page.find(identifier), name, first=first, last=last, limit=points, after=after)

    @app.get("/api/runs/{identifier}/live")
    async def live(identifier: str) -> Response:
        entry = page.find(identifier)
        if page.live >= MAX_LIVE:
            raise HTTPException(503, f"{MAX_LIVE} pages are open; close one")
        return StreamingResponse(_updates(page, entry), media_type="text/event-stream")

    app.include_router(sample_routes(page))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


async def _updates(page: Page, entry: ShownRun) -> AsyncIterator[str]:
    """Server-sent events: the overview of a run whenever it changed, until the page goes away or the run is deleted."""
    page.live += 1
    shown: object = None
    try:
        while True:
            more = await page.poll(entry)
            current = await page.overview(entry) | {"loading": more}
            if current != shown:
                shown = current
                yield f"data: {json.dumps(current)}\n\n"
            else:
                yield ": nothing new\n\n"
            await asyncio.sleep(LOADING_POLL_S if more else POLL_S)
            page.find(entry.identifier)
    except HTTPException:
        yield "event: deleted\ndata: {}\n\n"
    finally:
        page.live -= 1


class Guard:
    """Middleware: answers 403 without the token, and adds ``HEADERS`` to every response."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        allowed = scope["type"] == "lifespan" or (scope["type"] == "http" and self._authorised(Request(scope)))
        app: ASGIApp = self._app if allowed else REFUSAL
        await app(scope, receive, send_with_headers)

    def _authorised(self, request: Request) -> bool:
        if request.method not in ("GET", "HEAD"):
            return False
        given = request.cookies.get(COOKIE, "")
        if request.url.path == "/":
            given = request.query_params.get("token", given)
        return hmac.compare_digest(given.encode(), self._token)
