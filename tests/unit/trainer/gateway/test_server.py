"""The gateway's socket."""

from __future__ import annotations

import socket

import pytest

from areal_trainer.gateway.server import listen


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("0.0.0.0", socket.AF_INET)])
def test_port_0_is_any_free_port(host: str, family: socket.AddressFamily) -> None:
    with listen(host, 0) as one, listen(host, 0) as other:
        assert (one.family, one.get_inheritable()) == (family, False)
        assert one.getsockname()[1] != other.getsockname()[1]


def test_a_port_that_is_taken_is_an_error() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])
