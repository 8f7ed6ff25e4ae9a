"""Who may see which experiments on a page that many visitors share: they sign in with tokens of the cluster.

The API server decides: a TokenReview tells who a visitor is, SubjectAccessReviews in which namespaces the visitor may
``get`` experiments. Each failure has the same answer, before anything in a request but the token is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.requests import ClientDisconnect

from areal_api.experiment import API_VERSION
from areal_api.generate.crd import PLURAL
from areal_launcher.bounded_files import parse_json
from areal_launcher.cluster.client import ApiError, Cluster, Object
from areal_launcher.cluster.page import ClusterRuns
from areal_launcher.errors import RunError
from areal_launcher.ui.access import Visit

logger = logging.getLogger(__name__)
COOKIE = "grpo_page"
AUDIENCE = "areal-page"  # a token with this audience alone is useless at the API server
TRUSTED_S = 60.0  # how long answers of the API server are cached
SESSION_S = 12 * 3600.0
MAX_SESSIONS = 1_000  # the oldest is signed out
MAX_KNOWN = 10_000  # tokens whose reviews are cached
MAX_TOKEN_LENGTH = 16_384
MAX_BODY_BYTES = MAX_TOKEN_LENGTH + 1_024
BODY_S = 10.0
REVIEWS = 8  # concurrent requests to the API server, so that a flood of bad tokens does not become a flood there

NOT_SIGNED_IN = JSONResponse({"detail": "sign in with a token of this cluster"}, 401)
NOT_VALID = JSONResponse({"detail": "this token is not valid here"}, 401)
UNAVAILABLE = JSONResponse({"detail": "the API server does not answer; try again"}, 503)


@dataclass(frozen=True)
class User:
    """A user as a TokenReview describes it."""

    name: str
    attributes: Object  # of a SubjectAccessReview's spec: user, uid, groups, extra


@dataclass
class _Known:
    expires_at: float
    user: User | None  # None: the token is not valid
    allowed: dict[str, bool]  # by namespace; "" for all


class Visitors:
    """Admits visitors to ``runs``. Use from one event loop."""

    def __init__(self, cluster: Cluster, runs: ClusterRuns) -> None:
        self._cluster = cluster
        self._runs = runs
        self._known: dict[str, _Known] = {}  # by digest of the token
        self._sessions: dict[str, tuple[float, str]] = {}  # by digest of the cookie: when it expires, and the token
        self._reviews = asyncio.Semaphore(REVIEWS)

    async def admit(self, request: Request) -> Visit | Response:
        """What the sender may see; signing in and out, and refusals, are responses."""
        path = request.url.path
        if request.method == "POST":
            actions = {"/login": self._sign_in, "/logout": self._sign_out}
            return await actions[path](request) if path in actions and same_site(request) else NOT_SIGNED_IN
        if request.method not in ("GET", "HEAD"):
            return NOT_SIGNED_IN
        if path == "/healthz":
            return PlainTextResponse("ok")
        if path == "/readyz":
            listed = self._runs.listed
            return PlainTextResponse("ok" if listed else "the experiments cannot be listed", 200 if listed else 503)
        if path == "/" or path.startswith("/static/"):  # the same for everybody; they show nothing of a run
            return Visit(self._runs.seen_by(lambda _: False))
        token = self._token_of(request)
        try:
            known = None if token is None else await self._review(token)
            if known is None or known.user is None:
                return NOT_SIGNED_IN
            return Visit(self._runs.seen_by(await self._rights(known, known.user)), known.user.name)
        except RunError as error:
            logger.warning("a visitor cannot be reviewed: %s", error)
            return UNAVAILABLE

    async def _sign_in(self, request: Request) -> Response:
        token = await token_in(request)
        if token is None:
            return NOT_VALID
        try:
            known = await self._review(token)
        except RunError as error:
            logger.warning("a token cannot be reviewed: %s", error)
            return UNAVAILABLE
        if known.user is None:
            return NOT_VALID
        cookie = secrets.token_urlsafe(32)
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[digest(cookie)] = (time.monotonic() + SESSION_S, token)
        response = JSONResponse({"user": known.user.name})
        response.set_cookie(
            COOKIE, cookie, max_age=int(SESSION_S), httponly=True, samesite="strict", secure=is_encrypted(request)
        )
        return response

    async def _sign_out(self, request: Request) -> Response:
        self._sessions.pop(digest(request.cookies.get(COOKIE, "")), None)
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    def _token_of(self, request: Request) -> str | None:
        """The token in the request's Authorization header, or the one that its session was opened with."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return usable(token.strip())
        session = digest(request.cookies.get(COOKIE, ""))
        expires_at, token = self._sessions.get(session, (0.0, ""))
        if expires_at > time.monotonic():
            return token
        self._sessions.pop(session, None)
        return None

    async def _review(self, token: str) -> _Known:
        """Who a token belongs to. Raises ``RunError`` if the API server does not answer."""
        known = self._known.get(digest(token))
        if known is not None and known.expires_at > time.monotonic():
            return known
        user = None
        for audiences in ([AUDIENCE], []):
            status = await self._ask("TokenReview", {"token": token, **({"audiences": audiences} if audiences else {})})
            if status.get("authenticated") is True and (not audiences or AUDIENCE in (status.get("audiences") or ())):
                user = user_of(status.get("user") or {})
                break
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        known = _Known(time.monotonic() + TRUSTED_S, user, {})
        self._known[digest(token)] = known
        return known

    async def _rights(self, known: _Known, user: User) -> Callable[[str], bool]:
        """The namespaces whose experiments a user may get. Raises ``RunError`` like ``_review``."""
        if "" not in known.allowed:
            known.allowed[""] = await self._may_get(user, "")
        if known.allowed[""]:
            return lambda _: True
        unknown = [namespace for namespace in self._runs.namespaces() if namespace not in known.allowed]
        answers = await asyncio.gather(*(self._may_get(user, namespace) for namespace in unknown))
        known.allowed.update(zip(unknown, answers, strict=True))
        return lambda namespace: known.allowed.get(namespace, False)

    async def _may_get(self, user: User, namespace: str) -> bool:
        resource = {"group": API_VERSION.partition("/")[0], "resource": PLURAL, "verb": "get", "namespace": namespace}
        status = await self._ask("SubjectAccessReview", {**user.attributes, "resourceAttributes": resource})
        return status.get("allowed") is True and status.get("denied") is not True

    async def _ask(self, kind: str, spec: Object) -> Object:
        async with self._reviews:
            try:
                return await asyncio.to_thread(self._cluster.review, kind, spec)
            except ApiError as error:
                if error.code == 400:  # a token that is not even text of a token
                    return {}
                raise


def user_of(found: Object) -> User | None:
    """The user in the status of a TokenReview."""
    name = found.get("username")
    if not isinstance(name, str) or not name:
        return None
    attributes = {"user": name, **{key: found[key] for key in ("uid", "groups", "extra") if found.get(key)}}
    return User(name, attributes)


async def token_in(request: Request) -> str | None:
    """The token in the body of a request to sign in; None if the body is not such a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return None
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    return None
        content: Any = parse_json(bytes(body))
    except (TimeoutError, ClientDisconnect, ValueError):
        return None
    token = content.get("token") if isinstance(content, dict) else None
    return usable(token.strip()) if isinstance(token, str) else None


def usable(token: str) -> str | None:
    """``token`` if it can be one."""
    return token if 0 < len(token) <= MAX_TOKEN_LENGTH and token.isascii() and token.isprintable() else None


def digest(secret: str) -> str:
    """Identifies a secret that is not kept as a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def same_site(request: Request) -> bool:
    """Whether a request does not come from another site's page. Browsers say so; other clients say nothing."""
    return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def is_encrypted(request: Request) -> bool:
    """Whether the visitor's connection uses TLS, up to the proxy in front of this server."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
