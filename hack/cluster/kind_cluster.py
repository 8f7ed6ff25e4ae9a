"""The kind cluster of ``make cluster``: kubectl, helm and its nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

NAME = "areal"
REGISTRY = "localhost:5000"
BIN = Path(__file__).parents[2] / ".bin"
TAG = BIN / "images.tag"  # written by up.sh
COMMAND_S = 300.0
NODE_READY_S = 120
API_SERVER = "^kube-apiserver "  # pattern of its command line
API_SERVER_BACK_S = 180  # kubelet's back-off grows with each restart


class NoCluster(Exception):
    """There is no cluster; the message says what is missing."""


@dataclass(frozen=True)
class KindCluster:
    """One cluster. Commands raise ``CalledProcessError`` with their output if they fail."""

    kubeconfig: Path
    image_tag: str
    control_plane: str = f"{NAME}-control-plane"
    worker: str = f"{NAME}-worker"

    @classmethod
    def find(cls, folder: Path) -> KindCluster:
        """Find this machine's cluster and write its kubeconfig into ``folder``. Raises ``NoCluster``."""
        if not (BIN / "kind").exists() or shutil.which("docker") is None:
            raise NoCluster("kind or Docker is missing; `make cluster` installs them")
        found = subprocess.run(
            [str(BIN / "kind"), "get", "kubeconfig", "--name", NAME], capture_output=True, text=True, check=False
        )
        if found.returncode:
            raise NoCluster(f"no kind cluster {NAME} ({found.stderr.strip()}); `make cluster` creates it")
        if not TAG.exists():
            raise NoCluster("the images have not been built; `make cluster` builds them")
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(found.stdout)
        kubeconfig.chmod(0o600)
        return cls(kubeconfig, TAG.read_text().strip())

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl with ``text`` as its standard input; returns its output."""
        return self._run([str(BIN / "kubectl"), *arguments], text)

    def start_kubectl(self, *arguments: str) -> subprocess.Popen[str]:
        """Start kubectl; its output is in ``stdout``."""
        return subprocess.Popen(
            [str(BIN / "kubectl"), *arguments], env=self._environment(), stdout=subprocess.PIPE, text=True
        )

    def helm(self, *arguments: str) -> str:
        """Run helm; returns its output."""
        return self._run([str(BIN / "helm"), *arguments])

    def wait(self, condition: str, *objects: str, namespace: str = "default", timeout_s: int = 120) -> None:
        """``kubectl wait``; on failure the error shows the objects."""
        command = ["--namespace", namespace, "wait", f"--for={condition}", f"--timeout={timeout_s}s", *objects]
        try:
            self.kubectl(*command)
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            error.add_note(self.kubectl("--namespace", namespace, "get", "pods,events", "--output", "wide"))
            raise

    def on_node(self, node: str, *command: str) -> str:
        """Run a command on a node; returns its output."""
        return self._run(["docker", "exec", node, *command])

    def stop_node(self, node: str) -> None:
        """Stop a node as in a power loss."""
        self._run(["docker", "stop", "--time=0", node])

    def start_node(self, node: str) -> None:
        """Start a node and wait until it is ready."""
        self._run(["docker", "start", node])
        # The Node object shows its state from before the stop for a while, so probe the node first.
        deadline = time.monotonic() + NODE_READY_S
        while not self._answers(node):
            if time.monotonic() > deadline:
                raise TimeoutError(f"kubelet and kube-proxy of {node} did not respond within {NODE_READY_S} s")
            time.sleep(0.5)
        self.wait("condition=Ready", f"node/{node}", timeout_s=NODE_READY_S)

    def kill_api_server(self) -> None:
        """SIGKILL the API server and wait until kubelet has restarted it and it is ready."""
        before = self.on_node(self.control_plane, "pgrep", "-of", API_SERVER)
        self.on_node(self.control_plane, "kill", "-9", before.strip())
        deadline = time.monotonic() + API_SERVER_BACK_S
        while not self._is_ready_again(before):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the API server was not ready again within {API_SERVER_BACK_S} s")
            time.sleep(0.5)

    def _is_ready_again(self, before: str) -> bool:
        try:
            now = self.on_node(self.control_plane, "pgrep", "-of", API_SERVER)
            return now != before and self.kubectl("get", "--raw", "/readyz") == "ok"
        except subprocess.CalledProcessError:
            return False

    def _answers(self, node: str) -> bool:
        try:
            self.kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/healthz")  # kubelet
            self.kubectl("get", "--raw", f"/api/v1/nodes/{node}:10256/proxy/healthz")  # kube-proxy
            return True
        except subprocess.CalledProcessError:
            return False

    def _environment(self) -> dict[str, str]:
        """An environment without the user's helm settings and kubeconfig."""
        folders = {f"HELM_{kind}_HOME": str(self.kubeconfig.parent / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        return {**os.environ, **folders, "KUBECONFIG": str(self.kubeconfig)}

    def _run(self, command: list[str], text: str | None = None) -> str:
        env = self._environment()
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=env, timeout=COMMAND_S, check=False
        )
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
            error.add_note(done.stderr.strip()[-2000:])
            raise error
        return done.stdout
