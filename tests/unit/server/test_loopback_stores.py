"""TCP stores at a loopback address are not reachable from other interfaces."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from areal_server.loopback_stores import LoopbackTCPStore
from support.real_server import free_port


def listening_addresses(port: int) -> set[str]:
    sockets = psutil.Process().net_connections(kind="inet")
    return {entry.laddr.ip for entry in sockets if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port}


@pytest.mark.parametrize("libuv", [True, False])
def test_store_listens_on_its_loopback_address_only(libuv: bool) -> None:
    port = free_port()
    store = LoopbackTCPStore("127.0.0.1", port, 1, True, use_libuv=libuv)
    client = LoopbackTCPStore("127.0.0.1", port, 1, False, use_libuv=libuv)
    client.set("key", "value")
    assert store.get("key") == b"value"
    assert listening_addresses(port) == {"127.0.0.1"}


def test_store_at_another_address_is_unchanged() -> None:
    port = free_port()
    store = LoopbackTCPStore("0.0.0.0", port, 1, True)
    assert listening_addresses(port) & {"::", "0.0.0.0"}
    del store


def test_process_group_uses_the_store_after_installation() -> None:
    port = free_port()
    script = f"""
import psutil
from areal_server import loopback_stores
loopback_stores.install()
import torch.distributed as dist
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=0, world_size=1)
listening = [c.laddr for c in psutil.Process().net_connections(kind="inet") if c.status == "LISTEN"]
assert ("127.0.0.1", {port}) in listening, listening
assert not [a for a in listening if a.port == {port} and a.ip != "127.0.0.1"], listening
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
