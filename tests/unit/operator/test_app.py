"""The operator as a whole: faults of one namespace, and the address it listens on."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest

from areal_operator.app import Operator, listening_socket
from areal_operator.cluster import ApiError, ObjectList
from areal_operator.settings import Settings
from support.memory_cluster import MemoryCluster


class OneNamespaceGone(MemoryCluster):
    """Refuses to list namespace ``gone``."""

    async def pages(
        self, kind: str, namespace: str | None, selector: str = "", fields: str = ""
    ) -> AsyncIterator[ObjectList]:
        if namespace == "gone":
            raise ApiError(403, "Forbidden", f"{kind} is forbidden: RoleBinding not found")
        async for page in super().pages(kind, namespace, selector, fields):
            yield page


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


async def test_a_namespace_that_cannot_be_read_is_named_once_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = OneNamespaceGone()
    operator = Operator(Settings(watched=("gone", "ns")), cluster, b"k" * 32)
    for _ in range(3):
        await operator.resync()
    assert operator.synced
    assert caplog.text.count("namespace gone cannot be read, its experiments are not managed") == 1
    assert ("GET", "GRPOExperiment", "") in cluster.requests  # the other one was listed


async def test_an_unavailable_api_server_is_not_a_missing_namespace() -> None:
    cluster = MemoryCluster()

    async def unavailable(*_: Any) -> AsyncIterator[ObjectList]:
        raise ApiError(503, "ServiceUnavailable", "")
        yield

    cluster.pages = unavailable  # type: ignore[assignment,method-assign]
    operator = Operator(Settings(watched=("ns",)), cluster, b"k" * 32)
    with pytest.raises(ApiError):
        await operator.resync()
    assert not operator.synced


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_it_listens_on_both_ip_versions(family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    address = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with listening_socket(port), socket.socket(family) as client:
        client.settimeout(5.0)
        client.connect((address, port))
