"""The operator as a separate process against a control plane, with the permissions of the chart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from hack.cluster.control_plane import ControlPlane, die_with_parent, free_ports

USER = "operator"
NAMESPACE = "areal-system"
RULES: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    (Path(__file__).parents[2] / "helm" / "areal-gsm8k" / "files" / "rules.yaml").read_text()
)  # those of the chart
CLUSTERWIDE = ("experiments", "cluster", "kueue", "kueueCluster")
GANGS = tuple(part for part in RULES if part.startswith("gang-"))
ENV = {
    "AREAL_OPERATOR_NAMESPACE": NAMESPACE,
    "AREAL_OPERATOR_WAITING_SECONDS": "1",
    "AREAL_OPERATOR_RETRY_SECONDS": "1",
    "AREAL_OPERATOR_AUTOSCALE_SECONDS": "2",
    **{f"AREAL_{kind}_IMAGE{device}": f"{kind.lower()}:1" for kind in ("TRAINER", "SERVER") for device in ("", "_CPU")},
}


def grant() -> list[dict[str, Any]]:
    """The RBAC objects that give the operator its permissions."""
    return [
        *_granted(
            "ClusterRole",
            {"name": USER},
            [rule for part in (*CLUSTERWIDE, *GANGS) for rule in RULES[part]],
        ),
        *_granted("Role", {"name": USER, "namespace": NAMESPACE}, RULES["own"]),
    ]


def _granted(kind: str, metadata: dict[str, str], rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": kind, "name": USER},
            "subjects": [{"kind": "User", "name": USER}],
        },
    ]


class OperatorProcess:
    """One process; it may be killed and restarted."""

    def __init__(
        self, plane: ControlPlane, folder: Path, *, identity: str = "operator-0", host: str = "127.0.0.1"
    ) -> None:
        self._plane = plane
        self.identity = identity
        self._host = host
        self.port = free_ports(1)[0]
        self.log = folder / f"{identity}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self._host}:{self.port}"

    def start(self, *, wait: bool = True, **env: str) -> None:
        """Start it, and wait until its first listing is complete."""
        assert self._process is None, "it is already running"
        changes = {
            "KUBECONFIG": str(self._plane.kubeconfig(USER)),
            "AREAL_OPERATOR_IDENTITY": self.identity,
            "AREAL_OPERATOR_PORT": str(self.port),
            "AREAL_OPERATOR_URL": self.url,
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "areal_operator"],
                stdout=log,
                stderr=log,
                env={**os.environ, **ENV, **changes, **env},
                preexec_fn=die_with_parent,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until its first listing is complete."""
        deadline = time.monotonic() + timeout_s
        while not self.answers("/readyz"):
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def answers(self, path: str) -> bool:
        """Whether a path returns status 200."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=2.0) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def read(self, path: str) -> str:
        """The text at a path."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=5.0) as response:
            return str(response.read().decode())

    @property
    def runs(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process ID."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kill it."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Terminate it; returns its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        try:
            status = self._process.wait(20.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        return status
