"""A real Ray cluster of several raylets on this machine: every node has its own loopback address and its own label."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

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
    # A raylet that is slow on a busy machine is not lost; a killed one refuses connections at once.
    "RAY_health_check_timeout_ms": "60000",
}


class RayCluster:
    """Nodes ``node-0`` (with the head) to ``node-<n-1>``. Entering the context starts them; nothing outlives it."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        cpus: int = 4,
        gpus: int = 0,
        head_cpus: int | None = None,
        one_address: bool = False,
        dashboard: bool = False,
        autoscaled: int = 0,
    ) -> None:
        """``gpus``: declared on every node but the first; they need not exist.

        ``head_cpus``: of the first node (default: ``cpus``). ``one_address``: all nodes have the same. ``dashboard``:
        with the server of ``ray job submit``. ``autoscaled``: nodes of ``cpus`` CPUs that an autoscaler may add.
        """
        self._cpus = cpus
        self._head_cpus = cpus if head_cpus is None else head_cpus
        self._one_address = one_address
        self._dashboard = dashboard
        self._autoscaled = autoscaled
        self._gpus = gpus
        self._nodes = nodes
        # UNIX sockets are below it, and their paths are limited to 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.mark = self.directory.name
        self.address = ""
        self.dashboard = ""  # URL, if there is one
        self._agents: list[psutil.Process] = []  # of killed raylets; the titles they set hide their environment

    def __enter__(self) -> RayCluster:
        try:
            port, dashboard = free_port(), free_port()
            options = [f"--include-dashboard={str(self._dashboard).lower()}", f"--dashboard-port={dashboard}"]
            if not self._autoscaled:
                options.append("--no-monitor")
            else:
                options.append(f"--autoscaling-config={self._autoscaling(port)}")
            self._start("--head", f"--port={port}", *options, index=0)
            self.dashboard = f"http://127.0.0.1:{dashboard}" if self._dashboard else ""
            self.address = f"{self.host(0)}:{port}"
            for index in range(1, self._nodes):
                self.start_node(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes():
            if name_of(process) == "raylet":
                self._agents += children_of(process)
        self._kill(lambda process: True)
        for agent in self._agents:
            send(agent, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def host(self, index: int) -> str:
        """Address of a node."""
        return "127.0.2.1" if self._one_address else f"127.0.1.{index + 1}"

    def environment(self) -> dict[str, str]:
        """Variables for a driver, which counts as a process of the cluster."""
        return {**os.environ, **SETTINGS, MARK: self.mark, "RAY_ADDRESS": self.address}

    def start_node(self, index: int, *, hidden: Sequence[Path] = (), shown: Path | None = None) -> None:
        """Add a node that is not running. It sees ``shown`` in place of the directories ``hidden``, which needs root.

        Without ``shown`` it sees empty directories there.
        """
        options = [f"--address={self.address}", f"--num-gpus={self._gpus}"]
        self._start(*options, index=index, hidden=hidden, shown=shown)

    def kill_node(self, index: int) -> None:
        """Kill a node's raylet without grace. Ray ends its workers."""
        (raylet,) = [
            process
            for process in self.processes()
            if name_of(process) == "raylet" and f"--node_ip_address={self.host(index)}" in arguments(process)
        ]
        self._agents += children_of(raylet)
        send(raylet, signal.SIGKILL)
        raylet.wait(START_TIMEOUT_S)

    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster, and whatever they have started."""
        return [process for process in psutil.process_iter() if environment_of(process).get(MARK) == self.mark]

    def _autoscaling(self, port: int) -> Path:
        """The configuration of an autoscaler whose nodes are processes of this machine."""
        worker = {"CPU": self._cpus, "object_store_memory": OBJECT_STORE_BYTES}
        types = {
            "ray.head.default": {"resources": {"CPU": self._head_cpus}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": self._autoscaled},
        }
        lists = [f"{part}_commands" for part in ("initialization", "setup", "head_setup", "worker_setup")]
        lists += ["head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
        config = {
            "cluster_name": self.mark,
            "max_workers": self._autoscaled,
            "idle_timeout_minutes": 5,
            "upscaling_speed": 10,
            "provider": {"type": "fake_multinode", "gcs_address": f"{self.host(0)}:{port}"},
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "head_node_type": "ray.head.default",
            "available_node_types": types,
            **{name: [] for name in lists},
        }
        path = self.directory / "autoscaling.yaml"
        path.write_text(json.dumps(config))
        return path

    def _kill(self, chosen: Callable[[psutil.Process], bool]) -> None:
        """Kill processes of the cluster and whatever they start meanwhile."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while left := [process for process in self.processes() if chosen(process)]:
            for process in left:
                send(process, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of the Ray cluster do not end: {left}")
            time.sleep(0.05)

    def _start(self, *arguments: str, index: int, hidden: Sequence[Path] = (), shown: Path | None = None) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", *arguments]
        command += [f"--node-ip-address={self.host(index)}", f"--num-cpus={self._cpus if index else self._head_cpus}"]
        command += [f"--labels=node=node-{index}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]  # of several clusters and nodes at one address
        command += [f"--temp-dir={self.directory}", "--disable-usage-stats", "--include-log-monitor=false"]
        if hidden:
            mount = "mount -t tmpfs none" if shown is None else f"mount --bind {shlex.quote(str(shown))}"
            mounts = [f"{mount} {shlex.quote(str(folder))}" for folder in hidden]
            script = " && ".join([*mounts, f"exec {shlex.join(command)}"])
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        env = {**os.environ, **SETTINGS, MARK: self.mark, NODE: str(index)}
        if self._autoscaled:
            env |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
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


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes that it started; none if it has ended."""
    try:
        return list(process.children())
    except psutil.NoSuchProcess:
        return []


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
