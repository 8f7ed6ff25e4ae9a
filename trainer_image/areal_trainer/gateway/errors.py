"""Errors of the gateway, and how each protocol writes them."""

from __future__ import annotations

from typing import Any, Literal

Dialect = Literal["openai", "anthropic"]

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = _OPENAI_TYPES | {413: "request_too_large", 503: "overloaded_error"}


class GatewayError(Exception):
    """A request that gets an error response with ``status``; ``field`` is the request's field at fault."""

    def __init__(self, status: int, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.code = code


def protocol_of(path: str) -> Dialect:
    """The protocol that a path belongs to."""
    return "anthropic" if path.startswith(("/v1/messages", "/messages")) else "openai"


def error_body(error: GatewayError, protocol: Dialect) -> dict[str, Any]:
    """The body of the response, as the protocol's own SDK expects it."""
    if protocol == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}}
