"""The command ``grpo --on kubernetes`` in tests, and a user who may only run it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import yaml

from areal_launcher import cli
from hack.cluster.control_plane import ControlPlane
from hack.testbed.experiments import Experiment, Namespace


class Grpo:
    """The command in its own directory with an experiment.yaml."""

    def __init__(self, plane: ControlPlane, experiment: Experiment, folder: Path) -> None:
        self.kubeconfig = str(plane.kubeconfig())
        self.experiment = experiment
        self.path = folder / "experiment.yaml"
        self.results = folder / "results"

    @property
    def place(self) -> list[str]:
        return ["--on", "kubernetes", "--kubeconfig", self.kubeconfig, "--namespace", self.experiment.namespace.name]

    def write(self, **changes: Any) -> None:
        """Write the experiment to a file; ``__`` in the name of a change is a dot."""
        self.experiment.changes |= {key.replace("__", "."): value for key, value in changes.items()}
        self.path.write_text(yaml.safe_dump(self.experiment.body()))

    def run(self, *more: str) -> int:
        return cli.main(["run", str(self.path), *self.place, "--results", str(self.results), *more])

    def command(self) -> list[str]:
        """The ``grpo run`` command line."""
        return [sys.executable, "-m", "areal_launcher.cli", "run", str(self.path), *self.place]

    def start(self) -> subprocess.Popen[str]:
        """Start ``grpo run`` as a separate process."""
        return subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


PERMISSIONS = [  # those that docs/operating.md lists
    {"apiGroups": ["areal.dev"], "resources": ["grpoexperiments"], "verbs": ["get", "create", "patch"]},
    {"apiGroups": ["", "batch"], "resources": ["events", "jobs", "pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "create", "delete"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "patch"]},
]


def user_kubeconfig(namespace: Namespace, plane: ControlPlane, folder: Path) -> str:
    """Kubeconfig of a user with ``PERMISSIONS`` in the namespace and none elsewhere."""
    api, about = namespace.api, {"name": "person", "namespace": namespace.name}
    rbac = "rbac.authorization.k8s.io"
    api.create({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": about}, namespace.name)
    role = {"kind": "Role", "apiVersion": f"{rbac}/v1", "metadata": about, "rules": PERMISSIONS}
    binding = {
        "kind": "RoleBinding",
        "apiVersion": f"{rbac}/v1",
        "metadata": about,
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "person"},
        "subjects": [{"kind": "ServiceAccount", **about}],
    }
    for obj, plural in ((role, "roles"), (binding, "rolebindings")):
        api.post(f"/apis/{rbac}/v1/namespaces/{namespace.name}/{plural}", obj)
    request = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}}
    token = api.post(f"/api/v1/namespaces/{namespace.name}/serviceaccounts/person/token", request)["status"]["token"]
    config = yaml.safe_load(plane.kubeconfig().read_text())
    config["users"][0]["user"] = {"token": token}
    path = folder / "person.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def read_until(process: subprocess.Popen[str], text: str, timeout_s: float = 60.0) -> list[str]:
    """Read lines up to the one that contains ``text``; fails if the process exits or time runs out."""
    lines: list[str] = []
    assert process.stdout is not None
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return lines
    finally:
        timer.cancel()
    raise AssertionError(f"{text!r} was not printed: {''.join(lines)}")
