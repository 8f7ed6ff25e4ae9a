"""Which addresses are local to this machine."""

from __future__ import annotations

from areal_server.addresses import is_loopback


def test_loopback_addresses() -> None:
    hosts = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org", "")
    assert [is_loopback(host) for host in hosts] == [True, True, True, False, False, False, False]
