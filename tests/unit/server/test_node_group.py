"""The nodes of a server find each other and notice a loss."""

from __future__ import annotations

import contextlib
import queue
import socket
from collections.abc import Callable

import pytest

from areal_server import node_group
from areal_server.node_group import Member, NodeGroup
from support.real_server import free_port

TIMEOUT_S = 20.0


class Node:
    """One node's group, and what happens to it."""

    def __init__(self, port: int, rank: int, *, nodes: int = 2, key: str = "k") -> None:
        self.lost: queue.Queue[str] = queue.Queue()
        self.drained: queue.Queue[bool] = queue.Queue()
        member = Member(nodes, rank, "127.0.0.1", port)
        self.group = NodeGroup(
            member, host="127.0.0.1", key=key, lost=self.lost.put, drain=lambda: self.drained.put(True)
        )
        self.group.start()


def joined(leader: Node, nodes: int = 2) -> None:
    """Wait until all nodes are connected."""
    wait_for(lambda: len(leader.group._connected) == nodes - 1)


def wait_for(condition: Callable[[], bool]) -> None:
    never: queue.Queue[None] = queue.Queue()
    for _ in range(int(TIMEOUT_S / 0.05)):
        if condition():
            return
        with pytest.raises(queue.Empty):
            never.get(timeout=0.05)
    raise AssertionError("not in time")


def test_a_node_that_starts_before_the_first_one_joins_it_later() -> None:
    port = free_port()
    follower = Node(port, 1)
    leader = Node(port, 0)
    joined(leader)
    assert follower.lost.empty()


def test_the_end_of_one_node_is_noticed_by_the_other() -> None:
    port = free_port()
    leader, follower = Node(port, 0), Node(port, 1)
    joined(leader)
    leader.group._connected[1].shutdown(socket.SHUT_RDWR)
    assert follower.lost.get(timeout=TIMEOUT_S) == "node 0 has ended"
    assert leader.lost.get(timeout=TIMEOUT_S).startswith("node 1")


def test_a_node_that_is_started_again_brings_down_the_old_server() -> None:
    port = free_port()
    leader, _ = Node(port, 0), Node(port, 1)
    joined(leader)
    Node(port, 1)
    assert leader.lost.get(timeout=TIMEOUT_S) == "node 1 was started again"


def test_silence_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_group, "SILENCE_S", 0.2)
    monkeypatch.setattr(node_group, "BEAT_S", 60.0)
    port = free_port()
    leader, _ = Node(port, 0), Node(port, 1)
    assert "has been silent" in leader.lost.get(timeout=TIMEOUT_S)


def test_a_terminated_node_asks_the_first_one_to_drain() -> None:
    port = free_port()
    leader, follower = Node(port, 0), Node(port, 1)
    joined(leader)
    wait_for(lambda: follower.group._to_leader is not None)
    follower.group.request_drain()
    assert leader.drained.get(timeout=TIMEOUT_S)


@pytest.mark.parametrize("hello", [b"", b"x" * 500, b"GET / HTTP/1.1\r\n\r\n"])
def test_strangers_do_not_join(hello: bytes) -> None:
    port = free_port()
    leader = Node(port, 0)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as stranger:
        stranger.sendall(hello)
        with contextlib.suppress(OSError):  # the leader may have hung up already
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(10) == b""
    Node(port, 1, key="other")
    Node(port, 1)
    joined(leader)
    assert leader.lost.empty()


def test_a_silent_stranger_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_group, "HELLO_S", 2 * TIMEOUT_S)
    port = free_port()
    leader = Node(port, 0)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S):
        Node(port, 1)
        joined(leader)


def test_a_stranger_that_says_a_byte_at_a_time_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_group, "HELLO_S", 0.5)
    port = free_port()
    Node(port, 0)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as stranger:
        stranger.settimeout(0.1)

        def hung_up() -> bool:
            try:
                stranger.sendall(b"x")
                return stranger.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_for(hung_up)
