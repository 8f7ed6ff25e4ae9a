"""What another trainer needs to train on a task, each in a separate environment."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from benchmarks.scripted import REPOSITORY

LIMIT_S = 1800.0  # of a script: a run of 25 steps takes minutes


class PeerError(RuntimeError):
    """A peer cannot be installed or run here."""


@dataclass(frozen=True)
class PeerTask:
    """Files and settings of a run: 32 × 8 samples of at most 20 tokens, one update per batch."""

    model: Path
    data: Path
    steps: int
    seed: int = 1
    learning_rate: float = 5e-4
    epsilon: float = 0.2


def install(name: str, requirements: Sequence[str], *, overrides: Sequence[str] = ()) -> Path:
    """The interpreter of the environment ``.bin/<name>``, created on first use. Raises ``PeerError``.

    ``overrides`` replace what the requirements ask of the same packages.
    """
    environment = REPOSITORY / ".bin" / name
    python, ready = environment / "bin" / "python", environment / ".ready"
    wanted = "\n".join((*requirements, *overrides))
    if ready.exists() and ready.read_text() == wanted:
        return python
    local = REPOSITORY / ".bin" / "uv" / "bin" / "uv"
    uv = str(local) if local.exists() else shutil.which("uv")
    if uv is None:
        raise PeerError(f"installing {requirements[0]} needs uv: run make setup, or add uv to PATH")
    pip_install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *requirements]
    if overrides:
        pip_install += ["--overrides", "-"]
    for argv in ([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)], pip_install):
        done = subprocess.run(argv, input="\n".join(overrides), capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise PeerError(f"{requirements[0]} cannot be installed: {lines[-1]}")
    ready.write_text(wanted)
    return python


def free_port() -> int:
    """A free TCP port on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_script(
    python: Path, script: Path, *arguments: str, work: Path, environment: Mapping[str, str], limit_s: float = LIMIT_S
) -> None:
    """Run a script of a peer without GPUs; none of its processes stays. Raises ``PeerError`` with its last output."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    argv = [str(python), str(script), *arguments]
    variables = inherited | {"CUDA_VISIBLE_DEVICES": ""} | dict(environment)
    with (work / f"{script.stem}.log").open("w+") as log:
        process = subprocess.Popen(
            argv, cwd=work, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise PeerError(f"{script.name} ran for {limit_s:.0f} s: {_end(log)}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status:
            raise PeerError(f"{script.name} exited with status {status}: {_end(log)}")


def _end(log: TextIO) -> str:
    log.seek(0)
    return log.read().strip()[-2000:]
