"""Makes torch's TCP stores with a loopback address listen on that address only.

A ``TCPStore`` listens on all interfaces whatever its host is, without authentication. SGLang creates one per server for
its ranks, at 127.0.0.1 unless it runs on several nodes.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from torch.distributed import TCPStore

from areal_server.addresses import is_loopback

_USERS = ("torch.distributed", "torch.distributed.rendezvous", "torch.distributed.distributed_c10d")


class LoopbackTCPStore(TCPStore):  # type: ignore[misc]
    """A ``TCPStore`` whose server listens on its host only, if that is a loopback address and the port is given."""

    def __init__(self, host_name: str, port: int, *arguments: Any, **options: Any) -> None:
        is_master = options.get("is_master", arguments[1] if len(arguments) > 1 else False)
        if is_master and port and options.get("master_listen_fd") is None and is_loopback(host_name):
            family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host_name, port))
            listener.listen(socket.SOMAXCONN)
            options["master_listen_fd"] = listener.detach()  # the store closes it
        super().__init__(host_name, port, *arguments, **options)


def install() -> None:
    """Replace ``TCPStore`` in torch. Modules that imported it before keep the original."""
    for name in _USERS:
        if getattr(sys.modules.get(name), "TCPStore", None) is TCPStore:
            sys.modules[name].TCPStore = LoopbackTCPStore  # type: ignore[attr-defined]
