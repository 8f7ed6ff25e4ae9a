"""``python -m areal_launcher.cluster.page_service``: the page of the experiments in a cluster, which the chart starts.

Visitors sign in (``visitors.py``). The service only lists experiments and creates reviews of tokens and accesses.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping

import uvicorn

from areal_api import logs
from areal_api.http_server import MAX_HEADER_BYTES, LimitedProtocol, listening_socket
from areal_launcher.cluster.client import Cluster, ClusterTarget
from areal_launcher.cluster.page import ClusterRuns
from areal_launcher.cluster.visitors import MAX_TOKEN_LENGTH, Visitors
from areal_launcher.ui.app import create_app
from areal_launcher.ui.serve import DEFAULT_PORT, MAX_CONCURRENT

REFRESH_S = 10.0  # between two lists while nobody looks, so that curves have no gaps


class PageProtocol(LimitedProtocol):
    """Keeps live pages connected for an hour, then they connect again. Behind a proxy all visitors are one peer."""

    per_peer = MAX_CONCURRENT
    connection_s = 3600.0


def keep_up(runs: ClusterRuns) -> None:
    """List the experiments for ever."""
    while True:
        runs.refresh()
        time.sleep(REFRESH_S)


def serve(environment: Mapping[str, str]) -> None:
    """Serve until SIGTERM. Raises ``ValueError`` for settings that cannot be used."""
    port = environment.get("AREAL_PAGE_PORT") or str(DEFAULT_PORT)
    if not port.isdecimal():
        raise ValueError(f"AREAL_PAGE_PORT is {port!r}; set the number of a port")
    watched = environment.get("AREAL_WATCH_NAMESPACES", "").replace(",", " ").split()
    listener = listening_socket(int(port))
    cluster = Cluster.connect(ClusterTarget())
    runs = ClusterRuns(cluster, watched)
    threading.Thread(target=keep_up, args=(runs,), name="list", daemon=True).start()
    config = uvicorn.Config(
        create_app(Visitors(cluster, runs), samples=False),
        http=PageProtocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES + MAX_TOKEN_LENGTH,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONCURRENT,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])


def main() -> int:
    """Serve the page; the exit status is 2 for settings that cannot be used."""
    logs.set_up()
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        serve(os.environ)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
