"""Parts of the control plane for tests that need no control plane."""

from __future__ import annotations

import socket
from pathlib import Path

from hack.cluster.control_plane import free_ports


def test_no_outgoing_connection_takes_a_free_port() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = free_ports(500)
    assert len(set(ports)) == 500
    assert [port for port in ports if first <= port <= last] == []


def test_a_port_in_use_is_not_free() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        assert port not in free_ports(2000)
