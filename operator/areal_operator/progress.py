"""Where trainers report: progress of one experiment, by a token that is good for it alone, into its status."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import ValidationError

from areal_api import resource_names
from areal_api.experiment import API_VERSION, KIND
from areal_api.progress import INTERVAL_S, MAX_BODY_BYTES, ProgressReport
from areal_operator.cluster import PROGRESS_MANAGER, ApiError, Cluster, is_transient
from areal_operator.status import PROGRESS_FIELDS
from areal_operator.store import Key

logger = logging.getLogger(__name__)
TRUSTED_S = 60.0  # how long a token that was looked at is not looked at again
MOST_TRUSTED = 10_000
REVIEWS = 8  # at a time: a flood of bad tokens does not become a flood on the API server


class ProgressReceiver:
    """Takes reports and writes each experiment's newest, at most once in ``INTERVAL_S``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._trusted: dict[str, float] = {}
        self._uids: dict[Key, str] = {}
        self._known: dict[Key, dict[str, object]] = {}  # what was told before: a report may leave things out
        self._reviews = asyncio.Semaphore(REVIEWS)
        self._written_at: dict[Key, float] = {}
        self._pending: dict[Key, tuple[str, ProgressReport]] = {}
        self._writers: dict[Key, asyncio.Task[None]] = {}
        self._closing = asyncio.Event()

    async def authorize(self, key: Key, token: str) -> str:
        """The uid of the experiment that ``token`` is for; raises ``HTTPException`` 401, 403 or 404."""
        uid = self._uids.get(key)
        if uid is not None and self._is_trusted(uid, token):
            return uid
        async with self._reviews:
            body = await self._cluster.get(KIND, *key)
            if body is None:
                raise HTTPException(404, "there is no such experiment")
            uid = str(body["metadata"]["uid"])
            user = await self._cluster.review_token(token, resource_names.progress_audience(uid))
        if user is None:
            raise HTTPException(401, "the token is not valid for this experiment")
        namespace, name = key
        if user != f"system:serviceaccount:{namespace}:{resource_names.service_account(name)}":
            raise HTTPException(403, "the token is not of this experiment's account")
        if len(self._trusted) >= MOST_TRUSTED:
            self._trusted.clear()
        self._trusted[_token_digest(uid, token)] = time.monotonic() + TRUSTED_S
        self._uids[key] = uid
        status = body.get("status") or {}
        self._known[key] = {name: status[name] for name in PROGRESS_FIELDS if name in status}
        return uid

    def take(self, key: Key, uid: str, report: ProgressReport) -> None:
        """Write ``report``, now or when the time has come; a newer one takes its place."""
        self._pending[key] = (uid, report)
        if key not in self._writers:
            self._writers[key] = asyncio.create_task(self._write(key))

    async def close(self) -> None:
        """Write what was taken and still waits for its turn: the trainer was told that it is taken."""
        self._closing.set()
        await asyncio.gather(*self._writers.values())

    async def _write(self, key: Key) -> None:
        try:
            while key in self._pending:
                await self._turn(key)
                uid, report = self._pending.pop(key)
                self._written_at[key] = time.monotonic()
                await self._apply(key, uid, report)
        finally:
            del self._writers[key]

    async def _turn(self, key: Key) -> None:
        left_s = self._written_at.get(key, float("-inf")) + INTERVAL_S - time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), max(0.0, left_s))

    async def _apply(self, key: Key, uid: str, report: ProgressReport) -> None:
        namespace, name = key
        told = report.model_dump(mode="json", by_alias=True, exclude_none=True)
        status = self._known[key] = {**self._known.get(key, {}), **told, "progress": report.progress}
        manifest = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "status": status,
        }
        try:
            await self._cluster.apply(manifest, subresource="status", manager=PROGRESS_MANAGER)
        except Exception as error:
            if not isinstance(error, ApiError) and not is_transient(error):
                raise
            logger.warning("%s/%s: progress cannot be written: %s", namespace, name, error)

    def _is_trusted(self, uid: str, token: str) -> bool:
        return self._trusted.get(_token_digest(uid, token), 0.0) > time.monotonic()


def make_app(progress: ProgressReceiver) -> FastAPI:
    """The service: ``POST /v1/namespaces/{namespace}/experiments/{name}/progress``."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await progress.close()

    app = FastAPI(title="AReaL operator", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/namespaces/{namespace}/experiments/{name}/progress", status_code=202)
    async def post_progress(namespace: str, name: str, request: Request) -> Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise HTTPException(401, "a bearer token is needed")
        body = await _capped_body(request)
        try:
            uid = await progress.authorize((namespace, name), token.strip())
        except ApiError as error:
            raise HTTPException(503, f"the API server did not answer: {error}") from error
        try:
            report = ProgressReport.model_validate_json(body)
        except ValidationError as error:
            raise HTTPException(
                422, error.errors(include_url=False, include_input=False, include_context=False)
            ) from error
        progress.take((namespace, name), uid, report)
        return Response(status_code=202)

    return app


async def _capped_body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a report has at most {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _token_digest(uid: str, token: str) -> str:
    return hashlib.sha256(f"{uid} {token}".encode()).hexdigest()
