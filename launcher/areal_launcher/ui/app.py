"""The HTTP server of the page: read-only, for those whom ``Access`` admits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from areal_launcher.run_files import MAX_STEP
from areal_launcher.ui.access import Access
from areal_launcher.ui.page import Page, Run, VisibleRuns
from areal_launcher.ui.source import ShownRun

STATIC = FilePath(__file__).with_name("static")
POLL_S = 1.0
LOADING_SEND_S = 0.5  # between updates while the file is longer than what was read
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

USER_HEADER = "Grpo-User"  # of each answer to a visitor who has signed in: the percent-encoded name


def create_app(access: Access, *, samples: bool = True) -> FastAPI:
    """The application. ``samples``: whether it serves files of samples, which needs pyarrow."""
    app = FastAPI(title="grpo ui", docs_url=None, redoc_url=None, openapi_url=None)
    page = Page()

    app.add_middleware(Guard, access=access)

    @app.get("/")
    async def index() -> Response:
        return PlainTextResponse((STATIC / "index.html").read_text(), media_type="text/html; charset=utf-8")

    @app.get("/api/runs")
    async def listed(runs: VisibleRuns) -> list[dict[str, Any]]:
        return await page.rows(runs)

    @app.get("/api/runs/{identifier}")
    async def run(entry: Run) -> dict[str, Any]:
        await page.poll(entry)
        return await page.overview(entry)

    @app.get("/api/runs/{identifier}/all")
    async def whole(entry: Run) -> dict[str, Any]:
        return await page.load(entry)

    @app.get("/api/runs/{identifier}/configuration")
    async def configuration(entry: Run) -> Response:
        return PlainTextResponse(await asyncio.to_thread(entry.configuration))

    @app.get("/api/runs/{identifier}/series")
    async def series(
        entry: Run,
        name: Annotated[list[str], Query(max_length=MAX_SERIES)],
        first: Annotated[int, Query(ge=0, le=MAX_STEP)] = 0,
        last: Annotated[int, Query(ge=0, le=MAX_STEP)] = MAX_STEP,
        points: Annotated[int, Query(ge=2, le=MAX_POINTS)] = 1_000,
        after: Annotated[int, Query(ge=0, le=MAX_STEP)] = 0,
    ) -> dict[str, Any]:
        return await page.series(entry, name, first=first, last=last, limit=points, after=after)

    @app.get("/api/runs/{identifier}/live")
    async def live(entry: Run, request: Request) -> Response:
        if page.live >= MAX_LIVE:
            raise HTTPException(503, f"{MAX_LIVE} pages are open; close one")
        return StreamingResponse(_updates(page, entry, access, request), media_type="text/event-stream")

    if samples:
        from areal_launcher.ui.sample_routes import sample_routes

        app.include_router(sample_routes(page))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


async def _updates(page: Page, entry: ShownRun, access: Access, request: Request) -> AsyncIterator[str]:
    """Server-sent events: the overview of a run whenever it changed, until the page goes away, the run is deleted, or
    the visitor may no longer see it."""
    page.live += 1
    shown: object = None
    try:
        while True:
            more = await page.poll(entry)
            until = time.monotonic() + LOADING_SEND_S
            while more and shown is not None and time.monotonic() < until:
                more = await page.poll(entry)
            current = await page.overview(entry) | {"loading": more}
            if current != shown:
                shown = current
                yield f"data: {json.dumps(current)}\n\n"
            else:
                yield ": nothing new\n\n"
            await asyncio.sleep(0 if more else POLL_S)
            visit = await access.admit(request)
            if isinstance(visit, Response):
                yield "event: refused\ndata: {}\n\n"
                return
            if visit.runs.find(entry.identifier) is None:
                yield "event: deleted\ndata: {}\n\n"
                return
    finally:
        page.live -= 1


class Guard:
    """Middleware: hands requests that ``access`` admits to the application, and adds ``HEADERS`` to every response."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(HEADERS)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        assert scope["type"] == "http", scope["type"]
        visit = await self._access.admit(Request(scope, receive))
        if isinstance(visit, Response):
            await visit(scope, receive, send_with_headers)
            return
        if visit.user is not None:
            headers[USER_HEADER] = quote(visit.user)
        scope["runs"] = visit.runs
        await self._app(scope, receive, send_with_headers)
