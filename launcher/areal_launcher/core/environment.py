"""The environment of a local run's processes: the user's own, without what would break connections on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_PROXY_NAMES = ("no_proxy", "NO_PROXY")
MAX_SOCKET_PATH = 107  # bytes of a UNIX socket's path (unix(7)), without the final zero
LONGEST_SOCKET_NAME = "/pymp-12345678/listener-12345678"  # that multiprocessing creates below TMPDIR


def child_environment(
    environ: Mapping[str, str], additions: Mapping[str, str], *, nodes: Sequence[str] = ()
) -> dict[str, str]:
    """``environ`` with ``additions``, for a server or trainer. ``nodes``: hosts of the run other than loopback.

    Requests to the run's own hosts bypass a proxy (SGLang checks its own health by HTTP), and Python processes write
    UTF-8 to their logs whatever the terminal's encoding is, unless the user has set PYTHONUTF8.
    """
    return {"PYTHONUTF8": "1", **bypassing_proxy({**environ, **additions}, [*LOOPBACK, *nodes])}


def bypassing_proxy(environ: Mapping[str, str], own: Sequence[str]) -> dict[str, str]:
    """``environ`` with the hosts ``own`` in no_proxy, if it sets a proxy."""
    result = dict(environ)
    if not any(name.lower().endswith("_proxy") and name not in NO_PROXY_NAMES for name in environ):
        return result
    set_names = [name for name in NO_PROXY_NAMES if environ.get(name)]
    for name in set_names or NO_PROXY_NAMES:
        hosts = [host.strip() for host in environ.get(name, "").split(",") if host.strip()]
        if "*" not in hosts:
            result[name] = ",".join([*hosts, *(host for host in own if host not in hosts)])
    return result


def check_environment() -> None:
    """Raise ``ValueError`` if the processes would find no usable temporary directory."""
    try:
        directory = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ValueError(f"TMPDIR: {error.strerror}; set TMPDIR to a directory that this user can write to") from error
    longest = MAX_SOCKET_PATH - len(LONGEST_SOCKET_NAME)
    if len(os.fsencode(directory)) > longest:
        raise ValueError(
            f"TMPDIR: {directory} has {len(os.fsencode(directory))} bytes, too long for the servers' UNIX sockets; "
            f"set TMPDIR to a directory of at most {longest} bytes, such as /tmp"
        )
