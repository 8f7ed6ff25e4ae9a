"""A real SGLang server on the CPU, started as in a run, for the duration of a benchmark."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

READY_WAIT_S = 240.0


@contextmanager
def sglang_server(config_file: Path, model: Path, log: Path) -> Iterator[str]:
    """Yields its host:port; it uses one thread. Raises ``RuntimeError`` if it exits or is not ready in time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "areal_server.launch", "--config", str(config_file), "--device", "cpu"]
    argv += ["--port", str(port), "--model-path", str(model)]
    with log.open("w") as out:
        process = subprocess.Popen(
            argv, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/ready", log)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()  # it terminates its children
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


@contextmanager
def configured_server(folder: Path, model: Path, number: int, **sglang: Any) -> Iterator[str]:
    """A server with ``sglang`` as its section of the configuration; its files are in ``folder``."""
    config = {
        "experiment_name": "benchmark",
        "trial_name": "benchmark",
        "actor": {"path": str(model), "ppo_n_minibatches": 1},
        "train_dataset": {"path": "none.jsonl", "batch_size": 1},
        "sglang": sglang,
    }
    file = folder / f"server{number}.yaml"
    file.write_text(yaml.safe_dump(config))
    with sglang_server(file, model, file.with_suffix(".log")) as address:
        yield address


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_WAIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the SGLang server exited with status {process.returncode}: {_last_lines(log)}")
        try:
            with urllib.request.urlopen(url, timeout=1.0) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the SGLang server was not ready after {READY_WAIT_S:.0f} s: {_last_lines(log)}")


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])
