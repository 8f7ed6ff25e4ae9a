"""Who may see which runs: the holder of a token, or in a cluster each visitor (``cluster/visitors.py``)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from areal_launcher.ui.source import Runs

COOKIE = "grpo_ui"
REFUSAL = JSONResponse({"detail": "open the address that grpo ui printed; it contains the token"}, status_code=403)


@dataclass(frozen=True)
class Visit:
    """A request that is admitted. ``user``: the visitor's name, where visitors sign in."""

    runs: Runs
    user: str | None = None


class Access(Protocol):
    """Decides about each request before anything else reads it."""

    async def admit(self, request: Request) -> Visit | Response:
        """What the sender may see; a response for a request that ends here."""
        ...


class TokenAccess:
    """Admits whoever has ``token``, as the cookie that ``/?token=…`` sets."""

    def __init__(self, runs: Runs, token: str) -> None:
        self._visit = Visit(runs)
        self._token = token

    async def admit(self, request: Request) -> Visit | Response:
        """All runs, or the refusal."""
        entrance = request.url.path == "/" and "token" in request.query_params
        given = request.query_params["token"] if entrance else request.cookies.get(COOKIE, "")
        if request.method not in ("GET", "HEAD") or not hmac.compare_digest(given.encode(), self._token.encode()):
            return REFUSAL
        if not entrance:
            return self._visit
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        return response
