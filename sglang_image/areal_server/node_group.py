"""The processes of one server on several nodes live and die together.

SGLang's ranks meet once, at their start. If one node's process ends, the others may wait for it in a collective until
that times out. Here every node holds a connection to the first one and sends a heartbeat. When a connection breaks,
both ends exit, so that whatever restarts them brings back the whole server. A node that is asked to terminate asks the
first one, which drains the server and then ends all ranks.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

BEAT, DRAIN = b".", b"d"
BEAT_S = 2.0
SILENCE_S = 30.0  # without a heartbeat, after which the other end is lost
HELLO_S = 5.0
HELLO_BYTES = 64  # a hexadecimal SHA-256
RETRY_S = 0.5


@dataclass(frozen=True)
class Member:
    """One node's place in its server."""

    nodes: int
    rank: int
    leader: str  # host of rank 0
    port: int  # where rank 0 listens for the others


class NodeGroup:
    """The connections of one node. ``lost`` is called once, with the reason, from another thread."""

    def __init__(
        self, member: Member, *, host: str, key: str, lost: Callable[[str], None], drain: Callable[[], None]
    ) -> None:
        """``host``: address that rank 0 listens on. ``key``: the secret that all nodes know."""
        self._member = member
        self._host = host
        self._key = key
        self._lost = lost
        self._drain = drain
        self._reported = threading.Lock()
        self._to_leader: socket.socket | None = None
        self._connected: dict[int, socket.socket] = {}
        self._guard = threading.Lock()

    def start(self) -> None:
        """Listen (rank 0) or keep connecting (others), in the background. Raises ``OSError`` for a port in use."""
        if self._member.rank:
            _run(self._follow)
            return
        listener = socket.create_server(
            (self._host, self._member.port),
            family=socket.AF_INET6 if ":" in self._host else socket.AF_INET,
            backlog=self._member.nodes,
        )
        _run(lambda: self._accept(listener))

    def request_drain(self) -> None:
        """Ask rank 0 to finish the server's requests and to end it."""
        if self._to_leader is not None:
            self._send(self._to_leader, DRAIN)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            _run(lambda one=connection: self._admit(one))  # type: ignore[misc]

    def _admit(self, connection: socket.socket) -> None:
        rank = self._greeted(connection)
        if rank is None:
            connection.close()
            return
        with self._guard:
            known = rank in self._connected
            self._connected[rank] = connection
        if known:
            self._report(f"node {rank} was started again")
        _run(lambda: self._beat(connection))
        self._listen(connection, f"node {rank}")

    def _greeted(self, connection: socket.socket) -> int | None:
        """The rank that a connection proves to be within ``HELLO_S``; None for anything else."""
        deadline = time.monotonic() + HELLO_S
        said = b""
        try:
            while len(said) < HELLO_BYTES and (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                part = connection.recv(HELLO_BYTES - len(said))
                if not part:
                    break
                said += part
        except OSError:
            return None
        others = range(1, self._member.nodes)
        return next((rank for rank in others if hmac.compare_digest(said, _hello(rank, self._key))), None)

    def _follow(self) -> None:
        connection = self._connect()
        self._send(connection, _hello(self._member.rank, self._key))
        self._to_leader = connection
        _run(lambda: self._beat(connection))
        self._listen(connection, "node 0")

    def _connect(self) -> socket.socket:
        while True:  # for as long as the startup probe allows
            try:
                return socket.create_connection((self._member.leader, self._member.port), timeout=HELLO_S)
            except OSError as error:
                logger.debug("%s:%s: %s", self._member.leader, self._member.port, error)
                time.sleep(RETRY_S)

    def _listen(self, connection: socket.socket, other: str) -> None:
        connection.settimeout(SILENCE_S)
        while True:
            try:
                said = connection.recv(64)
            except TimeoutError:
                return self._report(f"{other} has been silent for {SILENCE_S:.0f} s")
            except OSError as error:
                return self._report(f"{other} is gone: {error}")
            if not said:
                return self._report(f"{other} has ended")
            if DRAIN in said:
                logger.info("%s is being terminated: the server finishes its requests and ends", other)
                self._drain()

    def _beat(self, connection: socket.socket) -> None:
        while self._send(connection, BEAT):
            time.sleep(BEAT_S)

    def _send(self, connection: socket.socket, data: bytes) -> bool:
        try:
            connection.sendall(data)
        except OSError:  # the listening thread reports it
            return False
        return True

    def _report(self, reason: str) -> None:
        if self._reported.acquire(blocking=False):
            self._lost(reason)


def _hello(rank: int, key: str) -> bytes:
    return hmac.new(key.encode(), f"node {rank}".encode(), hashlib.sha256).hexdigest().encode()


def _run(target: Callable[[], None]) -> None:
    threading.Thread(target=target, name="node group", daemon=True).start()
