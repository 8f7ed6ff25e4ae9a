"""A controller of another project, as a separate process in a private mount namespace."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import yaml

from hack.cluster.control_plane import ControlPlane, die_with_parent
from hack.testbed.kube_api import Object

START_S = 60.0
MOUNTS = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))


class ControllerProcess:
    """It may be killed and restarted."""

    def __init__(self, log: Path, health_url: str) -> None:
        """``health_url`` answers with status 200 once the controller is ready."""
        self.log = log
        self._health_url = health_url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, script: str, env: Mapping[str, str]) -> None:
        """Run a shell script that mounts what the controller needs and then becomes the controller by ``exec``."""
        assert self._process is None, "it is already running"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*MOUNTS, "sh", "-ec", script],
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMAXPROCS": "2", **env},
                preexec_fn=die_with_parent,
            )

    def wait_ready(self) -> None:
        """Wait until it is ready. Raises ``AssertionError`` with the end of its log."""
        deadline = time.monotonic() + START_S
        while True:
            self.check()
            try:
                with urllib.request.urlopen(self._health_url, timeout=2.0):
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.1)

    def check(self) -> None:
        """Raises ``AssertionError`` with the end of its log if it has ended."""
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-3000:]

    def kill(self) -> None:
        """Kill it if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """Process ID."""
        assert self._process is not None
        return self._process.pid


def local_webhooks(manifests: Path, plane: ControlPlane, port: int) -> list[Object]:
    """The webhook configurations of a file, for a controller on loopback that has the API server's certificate."""
    bundle = base64.b64encode(plane.ca.read_bytes()).decode()
    configurations: list[Object] = [one for one in yaml.safe_load_all(manifests.read_text()) if one is not None]
    for configuration in configurations:
        for hook in configuration["webhooks"]:
            path = hook["clientConfig"].pop("service")["path"]
            hook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": bundle}
    return configurations
