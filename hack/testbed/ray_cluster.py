"""A real Ray cluster of several raylets on this machine: every node has its own loopback address and its own label."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from areal_launcher.core.supervisor import PR_SET_PDEATHSIG, prctl

START_TIMEOUT_S = 320.0
OBJECT_STORE_BYTES = 80 * 2**20  # the smallest that Ray accepts
MARK = "AREAL_TEST_RAY_CLUSTER"  # environment variable of every process of a cluster
NODE = "AREAL_TEST_RAY_NODE"  # number of its node
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    # Neither unused workers nor a long wait for what a killed node cannot answer.
    "RAY_enable_worker_prestart": "false",
    "RAY_prestart_worker_first_driver": "false",
    "RAY_memory_monitor_refresh_ms": "0",
}


class RayCluster:
    """Nodes ``node-0`` (with the head) to ``node-<n-1>``. Entering the context starts them; nothing outlives it."""

    def __init__(self, nodes: int = 3, *, cpus: int = 4, gpus: int = 0) -> None:
        """``gpus``: declared on every node but the first; they need not exist."""
        self._cpus = cpus
        self._gpus = gpus
        self._nodes = nodes
        # UNIX sockets are below it, and their paths are limited to 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.mark = self.directory.name
        self.address = ""

    def __enter__(self) -> RayCluster:
        try:
            port = free_port()
            options = ["--include-dashboard=false", "--dashboard-port=0", "--no-monitor"]
            self._start("--head", f"--port={port}", *options, index=0)
            self.address = f"{self.host(0)}:{port}"
            for index in range(1, self._nodes):
                self.start_node(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._kill(lambda process: True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def host(self, index: int) -> str:
        """Address of a node."""
        return f"127.0.1.{index + 1}"

    def environment(self) -> dict[str, str]:
        """Variables for a driver, which counts as a process of the cluster."""
        return {**os.environ, **SETTINGS, MARK: self.mark, "RAY_ADDRESS": self.address}

    def start_node(self, index: int, *, hidden: Path | None = None) -> None:
        """Add a node that is not running. It sees an empty directory in place of ``hidden``, which needs root."""
        self._start(f"--address={self.address}", f"--num-gpus={self._gpus}", index=index, hidden=hidden)

    def kill_node(self, index: int) -> None:
        """Kill a node's raylet without grace. Ray ends its workers."""
        (raylet,) = [
            process
            for process in self.processes()
            if name_of(process) == "raylet" and f"--node_ip_address={self.host(index)}" in arguments(process)
        ]
        send(raylet, signal.SIGKILL)
        raylet.wait(START_TIMEOUT_S)

    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster, and whatever they have started."""
        return [process for process in psutil.process_iter() if environment_of(process).get(MARK) == self.mark]

    def _kill(self, chosen: Callable[[psutil.Process], bool]) -> None:
        """Kill processes of the cluster and whatever they start meanwhile."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while left := [process for process in self.processes() if chosen(process)]:
            for process in left:
                send(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of the Ray cluster do not end: {left}")
            time.sleep(0.05)

    def _start(self, *arguments: str, index: int, hidden: Path | None = None) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", *arguments]
        command += [f"--node-ip-address={self.host(index)}", f"--num-cpus={self._cpus}"]
        command += [f"--labels=node=node-{index}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += [f"--temp-dir={self.directory}", "--disable-usage-stats", "--include-log-monitor=false"]
        if hidden is not None:
            mount = 'mount -t tmpfs none "$0" && exec "$@"'
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(hidden), *command]
        env = {**os.environ, **SETTINGS, MARK: self.mark, NODE: str(index)}
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
            )
            if done.returncode == 0:
                return
            # A busy machine may exceed the 30 s that Ray gives a raylet to start.
            if "timed out during startup" not in done.stderr:
                raise RuntimeError(f"ray start failed:\n{done.stdout}\n{done.stderr}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no raylet started within Ray's 30 s, in {START_TIMEOUT_S:g} s of attempts")
            self._kill(lambda process: environment_of(process).get(NODE) == str(index))


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process that may have ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def environment_of(process: psutil.Process) -> Mapping[str, str]:
    """Its environment; empty if it has ended or is another user's."""
    try:
        return {} if process.status() == psutil.STATUS_ZOMBIE else process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return {}


def name_of(process: psutil.Process) -> Any:
    """Its name; empty if it has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def arguments(process: psutil.Process) -> list[str]:
    """Its arguments; empty if it has ended."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def die_with_the_caller() -> None:
    """For ``preexec_fn``."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
