"""A real SGLang server process, started as in a run: areal_server.launch on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

READY_TIMEOUT_S = 240.0  # 10 s on an idle machine


@dataclass(frozen=True)
class RealServer:
    """A server that is ready for requests."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    """A free TCP port on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(directory: Path, model: Path, sglang: dict[str, Any], *, replay: bool = False) -> Path:
    """Write a minimal config.yaml for a server."""
    config = {
        "experiment_name": "contract",
        "trial_name": "contract",
        "actor": {"path": str(model), "ppo_n_minibatches": 1, "router_replay": replay},
        "train_dataset": {"path": "none.jsonl", "batch_size": 1},
        "sglang": {"dtype": "float32", **sglang},
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def real_server(
    directory: Path,
    model: Path,
    *,
    port: int | None = None,
    tensor_parallel: int = 1,
    api_key_file: Path | None = None,
    args: dict[str, Any] | None = None,
    more: Sequence[str] = (),
    replay: bool = False,
    wait: bool = True,
    **sglang: Any,
) -> Iterator[RealServer]:
    """Start a server for `model`, `wait` until it is ready, and kill it with all its processes on exit.

    `more` are further arguments of the launcher; `replay` is actor.router_replay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    argv = [
        sys.executable,
        "-m",
        "areal_server.launch",
        "--config",
        str(write_config(directory, model, sglang, replay=replay)),
    ]
    argv += ["--device", "cpu", "--port", str(port), "--args", json.dumps(args or {})]
    argv += ["--tensor-parallel", str(tensor_parallel), *more]
    if api_key_file is not None:
        argv += ["--api-key-file", str(api_key_file)]
    log = directory / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    server = RealServer(f"127.0.0.1:{port}", process, log)
    try:
        if wait:
            wait_until_ready(server)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30.0)


def wait_until_ready(server: RealServer) -> None:
    """Wait until a server answers; raises ``RuntimeError`` with the end of its log if it exits."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server exited with status {server.process.returncode}:\n{_tail(server.log)}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://{server.address}/ready", timeout=5.0).status_code == 200:
                return
        time.sleep(0.2)
    raise TimeoutError(f"the server was not ready after {READY_TIMEOUT_S} s:\n{_tail(server.log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
