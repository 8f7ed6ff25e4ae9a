"""The page of a cluster as a process, with the permissions that the chart gives it, and accounts of visitors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml

from hack.cluster.control_plane import ControlPlane, die_with_parent, free_ports
from hack.testbed.kube_api import Api, eventually
from hack.testbed.operator_process import NAMESPACE, RULES

RBAC = "rbac.authorization.k8s.io"


def account(api: Api, namespace: str, name: str, *, audience: str | None = None) -> str:
    """The token of a new service account."""
    about = {"name": name, "namespace": namespace}
    api.create({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": about}, namespace)
    return token_of(api, namespace, name, audience=audience)


def token_of(api: Api, namespace: str, name: str, *, audience: str | None = None) -> str:
    """A token of a service account: for the API server, or for another audience alone."""
    spec = {} if audience is None else {"audiences": [audience]}
    request = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": spec}
    return str(api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", request)["status"]["token"])


def grant(api: Api, namespace: str | None, name: str, rules: list[dict[str, Any]], *, home: str) -> None:
    """Give the service account ``name`` in ``home`` a role in a namespace, or in all."""
    scope = f"/apis/{RBAC}/v1" + (f"/namespaces/{namespace}" if namespace else "")
    prefix, lower = ("", "") if namespace else ("Cluster", "cluster")
    role = {"kind": f"{prefix}Role", "apiVersion": f"{RBAC}/v1", "metadata": {"name": name}, "rules": rules}
    binding = {
        "kind": f"{prefix}RoleBinding",
        "apiVersion": f"{RBAC}/v1",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": f"{prefix}Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": home}],
    }
    api.post(f"{scope}/{lower}roles", role)
    api.post(f"{scope}/{lower}rolebindings", binding)


class PageProcess:
    """One process, for all namespaces."""

    def __init__(self, plane: ControlPlane, api: Api, folder: Path) -> None:
        token = account(api, NAMESPACE, "page")
        grant(api, None, "page", [*RULES["page"], *RULES["pageCluster"]], home=NAMESPACE)
        config = yaml.safe_load(plane.kubeconfig().read_text())
        config["users"][0]["user"] = {"token": token}
        self._kubeconfig = folder / "page.kubeconfig"
        self._kubeconfig.write_text(yaml.safe_dump(config))
        self._port = free_ports(1)[0]
        self.log = folder / "page.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it has listed the experiments."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "areal_launcher.cluster.page_service"],
                stdout=log,
                stderr=log,
                env={**os.environ, "KUBECONFIG": str(self._kubeconfig), "AREAL_PAGE_PORT": str(self._port)},
                preexec_fn=die_with_parent,
            )
        eventually(self._is_ready, f"the page is ready: {self.log}", timeout_s=120.0)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5.0, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """Terminate it; returns its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30.0)
