"""Errors in the form of each protocol."""

from __future__ import annotations

import pytest

from areal_trainer.gateway.errors import GatewayError, error_body, protocol_of


@pytest.mark.parametrize(
    ("status", "of_openai", "of_anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (404, "not_found_error", "not_found_error"),
        (405, "invalid_request_error", "invalid_request_error"),
        (408, "invalid_request_error", "invalid_request_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
    ],
)
def test_each_status_has_the_protocol_s_type(status: int, of_openai: str, of_anthropic: str) -> None:
    error = GatewayError(status, "why", field="n", code="c")
    assert error_body(error, "openai") == {"error": {"message": "why", "type": of_openai, "param": "n", "code": "c"}}
    assert error_body(error, "anthropic") == {"type": "error", "error": {"type": of_anthropic, "message": "why"}}


def test_the_path_tells_the_protocol() -> None:
    assert {protocol_of(path) for path in ("/v1/messages", "/messages/count_tokens")} == {"anthropic"}
    assert {protocol_of(path) for path in ("/v1/chat/completions", "/rl/set_reward", "/responses")} == {"openai"}
