"""`grpo ui`: serves the page until Ctrl-C."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from areal_launcher.catalog import Catalog, require_folders
from areal_launcher.console import console_for

if TYPE_CHECKING:
    from areal_launcher.ui.source import Runs

DEFAULT_PORT = 8265
MAX_CONCURRENT = 256


def serve_directories(roots: Sequence[Path], *, host: str, port: int | None) -> int:
    """Show the runs below ``roots``; like ``serve``. Raises ``ValueError`` if a folder does not exist."""
    require_folders(roots)
    return serve(lambda: _local_runs(roots), host=host, port=port)


def _local_runs(roots: Sequence[Path]) -> Runs:
    from areal_launcher.ui.source import LocalRuns

    return LocalRuns(Catalog(roots))


def serve(make_runs: Callable[[], Runs], *, host: str, port: int | None) -> int:
    """Show runs until Ctrl-C. ``port``: None for 8265, or a free one if that is in use.

    Raises ``ValueError`` for an address that cannot be listened on.
    """
    try:
        import uvicorn

        from areal_launcher.ui.access import TokenAccess
        from areal_launcher.ui.app import create_app
    except ModuleNotFoundError as error:
        raise ValueError(f"grpo ui requires {error.name}: pip install 'areal-k8s[ui]'") from error
    source = make_runs()
    listener = listen(host, port)
    token = secrets.token_urlsafe(24)
    console = console_for()
    runs = len(source.rows())
    at = f"[{host}]" if ":" in host else host
    console.print(f"{runs} run{'' if runs == 1 else 's'}; the page is", markup=False)
    console.print(f"http://{at}:{listener.getsockname()[1]}/?token={token}", markup=False, soft_wrap=True)
    console.print("Ctrl-C ends it", markup=False)
    config = uvicorn.Config(
        create_app(TokenAccess(source, token)),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        limit_concurrency=MAX_CONCURRENT,
        timeout_graceful_shutdown=1,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket. Raises ``ValueError`` for an address that is in use or not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port] if port is not None else [DEFAULT_PORT, 0]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            if candidate == DEFAULT_PORT and port is None:
                continue
            raise ValueError(
                f"--host {host} --port {candidate}: {error.strerror or error}; choose another address"
            ) from error
    raise AssertionError("unreachable")
