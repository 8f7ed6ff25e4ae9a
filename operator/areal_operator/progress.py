"""HTTP endpoint for trainers' progress reports.

Each report is authenticated by a token bound to one experiment, before its body is read and before anything in the
request reaches the API server other than the token itself. Every failed authentication has the same answer.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from areal_api import resource_names
from areal_api.errors import describe
from areal_api.experiment import API_VERSION, KIND
from areal_api.progress import INTERVAL_S, MAX_BODY_BYTES, ProgressReport
from areal_operator.cluster import PROGRESS_MANAGER, ApiError, Cluster, is_transient
from areal_operator.status import PROGRESS_FIELDS
from areal_operator.store import Key

logger = logging.getLogger(__name__)
TRUSTED_S = 60.0  # how long the result of a token review is cached
MAX_TRUSTED = 10_000  # cached reviews
MAX_EXPERIMENTS = 10_000  # experiments whose last report is remembered
MAX_TOKEN_LENGTH = 8_192
REVIEWS = 8  # concurrent token reviews, so that a flood of bad tokens does not become a flood on the API server
AUTHENTICATION_S = 15.0
BODY_S = 10.0
MAX_WRITES_PER_S = 40  # of all experiments together, approximately

_AUDIENCE = re.compile(re.escape(resource_names.progress_audience("")) + r"[0-9a-f-]{36}")
_ACCOUNT = re.compile(
    r"system:serviceaccount:(?P<namespace>[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?):(?P<account>[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)"
)


@dataclass(frozen=True)
class Sender:
    """The experiment that a token belongs to."""

    key: Key
    uid: str


def interval_s(waiting: int) -> float:
    """Seconds between two writes of one experiment while the reports of ``waiting`` experiments are to be written.

    ``INTERVAL_S``, unless so many experiments report that the writes of all would exceed ``MAX_WRITES_PER_S``.
    """
    return max(INTERVAL_S, waiting / MAX_WRITES_PER_S)


class ProgressReceiver:
    """Accepts reports and writes the latest one of each experiment, at most once per ``interval_s``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._trusted: dict[str, tuple[float, Sender]] = {}  # by digest of the token: expiry and sender
        self._known: dict[Key, dict[str, object]] = {}  # reported before: a report may omit fields
        self._reviews = asyncio.Semaphore(REVIEWS)
        self._written_at: dict[Key, float] = {}
        self._pending: dict[Key, tuple[str, ProgressReport]] = {}
        self._writers: dict[Key, asyncio.Task[None]] = {}
        self._closing = asyncio.Event()

    async def authenticate(self, token: str) -> Sender | None:
        """The experiment that ``token`` was issued for; None if it is not valid for one that exists.

        Raises ``ApiError``, ``TimeoutError`` or a client error if the API server does not answer.
        """
        audience = _audience_of(token)
        if audience is None:
            return None
        digest = hashlib.sha256(token.encode()).hexdigest()
        expiry, sender = self._trusted.get(digest, (0.0, None))
        if sender is not None and expiry > time.monotonic():
            return sender
        async with self._reviews:
            user = await self._cluster.review_token(token, audience)
            account = _ACCOUNT.fullmatch(user or "")
            if account is None or not account["account"].endswith(resource_names.service_account("")):
                return None
            name = account["account"].removesuffix(resource_names.service_account(""))
            key = (account["namespace"], name)
            body = await self._cluster.get(KIND, *key) if name else None
        if body is None or resource_names.progress_audience(body["metadata"]["uid"]) != audience:
            return None
        sender = Sender(key, str(body["metadata"]["uid"]))
        if len(self._trusted) >= MAX_TRUSTED:
            self._trusted.clear()
        self._trusted[digest] = (time.monotonic() + TRUSTED_S, sender)
        self._remember(key, body.get("status") or {})
        return sender

    def accept(self, sender: Sender, report: ProgressReport) -> None:
        """Write ``report`` now, or once the interval is over. A later report replaces it until then."""
        self._pending[sender.key] = (sender.uid, report)
        if sender.key not in self._writers:
            self._writers[sender.key] = asyncio.create_task(self._write(sender.key))

    async def close(self) -> None:
        """Write all accepted reports that are still waiting."""
        self._closing.set()
        await asyncio.gather(*self._writers.values())

    def _remember(self, key: Key, status: dict[str, object]) -> None:
        if len(self._known) >= MAX_EXPERIMENTS:
            for old in [old for old in self._known if old not in self._writers]:
                del self._known[old]
                self._written_at.pop(old, None)
        self._known[key] = {name: status[name] for name in PROGRESS_FIELDS if name in status}

    async def _write(self, key: Key) -> None:
        try:
            while key in self._pending:
                await self._wait_for_interval(key)
                uid, report = self._pending.pop(key)
                self._written_at[key] = time.monotonic()
                await self._apply(key, uid, report)
        finally:
            del self._writers[key]

    async def _wait_for_interval(self, key: Key) -> None:
        left_s = self._written_at.get(key, float("-inf")) + interval_s(len(self._writers)) - time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), max(0.0, left_s))

    async def _apply(self, key: Key, uid: str, report: ProgressReport) -> None:
        namespace, name = key
        reported = report.model_dump(mode="json", by_alias=True, exclude_none=True)
        status = self._known[key] = {**self._known.get(key, {}), **reported, "progress": report.progress}
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
            logger.warning("%s/%s: progress cannot be written: %s", namespace, name, describe(error))


def make_app(progress: ProgressReceiver) -> Starlette:
    """The service: ``POST /v1/namespaces/{namespace}/experiments/{name}/progress``."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await progress.close()

    async def post_progress(request: Request) -> Response:
        sender = await _sender(progress, request.headers.get("Authorization", ""))
        if sender is None or sender.key != (request.path_params["namespace"], request.path_params["name"]):
            raise HTTPException(401, "a token of this experiment is required")
        body = await _read_body(request)
        try:
            report = ProgressReport.model_validate_json(body)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            return JSONResponse({"detail": problems}, 422)
        progress.accept(sender, report)
        return Response(status_code=202)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)

    path = "/v1/namespaces/{namespace}/experiments/{name}/progress"
    return Starlette(
        routes=[Route(path, post_progress, methods=["POST"])],
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )


async def _sender(progress: ProgressReceiver, authorization: str) -> Sender | None:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return None
    try:
        async with asyncio.timeout(AUTHENTICATION_S):
            return await progress.authenticate(token.strip())
    except Exception as error:
        if not isinstance(error, ApiError) and not is_transient(error):
            raise
        logger.warning("a token cannot be reviewed: %s", describe(error))
        raise HTTPException(503, "the API server does not answer; try again") from error


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"a report has at most {MAX_BODY_BYTES} bytes")
    except TimeoutError as error:
        raise HTTPException(408, f"the report did not arrive within {BODY_S:.0f} s") from error
    return bytes(body)


def _audience_of(token: str) -> str | None:
    """The progress audience that an unverified token claims to have; None if it has none."""
    parts = token.split(".", 3)
    if len(token) > MAX_TOKEN_LENGTH or len(parts) != 3 or not token.isascii():
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        audiences = claims["aud"]
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(audiences, list) or len(audiences) != 1 or not isinstance(audiences[0], str):
        return None
    return audiences[0] if _AUDIENCE.fullmatch(audiences[0]) else None
