"""The chart's admission policies on a real API server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from areal_api.experiment import KIND
from hack.cluster.control_plane import ControlPlane
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.kube_api import Refused, eventually
from support.chart import Helm

KINDS = "validatingadmissionpolicies,validatingadmissionpolicybindings"
LISTS = (
    "admission.serviceAccounts={s3-*}",
    "admission.images={registry.example.org/*}",
    "admission.tolerations={gpu}",
    "admission.secrets={hf}",
)
ONLINE = {"config.rollout.agent.mode": "online"}
FORBIDDEN: list[tuple[dict[str, Any], str]] = [
    ({"trainer.volumes": [{"name": "h", "hostPath": {"path": "/"}}]}, "volumes of type hostPath"),
    ({"servers.priorityClassName": "system-node-critical"}, "the priority class"),
    (
        {"servers.autoscale": {"min": 1, "max": 2, "priorityClassName": "system-node-critical"}},
        "the priority class",
    ),
    ({"servers.image": "elsewhere/x"}, "the image"),
    ({"trainer.tolerations": [{"operator": "Exists"}]}, "a toleration"),
    ({"servers.pools": [{"name": "a", "image": "elsewhere/x"}]}, "the image"),
    ({"servers.pools": [{"name": "a", "tolerations": [{"operator": "Exists"}]}]}, "a toleration"),
    ({"trainer.env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "db", "key": "k"}}}]}, "a Secret in env"),
    ({**ONLINE, "agents": [{"name": "a", "image": "elsewhere/x"}]}, "the image"),
    ({"tools": [{"name": "a", "tolerations": [{"operator": "Exists"}]}]}, "a toleration"),
    (
        {
            **ONLINE,
            "agents": [
                {"name": "a", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "db", "key": "k"}}}]}
            ],
        },
        "a Secret in env",
    ),
    ({"servers.initContainers": [{"name": "a", "image": "elsewhere/x"}]}, "the image of an init container"),
    (
        {
            "trainer.initContainers": [
                {
                    "name": "a",
                    "image": "registry.example.org/x",
                    "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "db", "key": "k"}}}],
                }
            ]
        },
        "a Secret in env of init containers",
    ),
    ({"servers.serviceAccountName": "default"}, "the service account is not allowed"),
    ({"trainer.fabric": {"hostNetwork": True}}, "fabric.hostNetwork is not allowed"),
    ({"servers.fabric": {"ipcLock": True}}, "fabric.ipcLock is not allowed"),
    ({"servers.volumes": [{"name": "s", "secret": {"secretName": "x-api-key"}}]}, "a Secret in secret volumes"),
]


@pytest.fixture
def policies(plane: ControlPlane, tmp_path: Path) -> Iterator[None]:
    objects = [obj for obj in Helm(tmp_path).template(*LISTS) if obj["kind"].startswith("ValidatingAdmission")]
    file = tmp_path / "policies.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    try:
        plane.kubectl("apply", f"--filename={file}")
        yield
    except subprocess.CalledProcessError as error:
        raise AssertionError(error.stderr) from error
    finally:
        plane.kubectl("delete", KINDS, "--all")


def test_experiments_get_no_more_than_the_lists_allow(policies: None, namespace: Namespace) -> None:
    def refusal(name: str, changes: dict[str, Any]) -> str:
        try:
            namespace.api.create(Experiment(namespace, name, dict(changes)).body(), namespace.name)
        except Refused as error:
            return str(error)
        namespace.api.delete(KIND, namespace.name, name)
        return ""

    for number, (changes, text) in enumerate(FORBIDDEN):  # a new policy takes effect within seconds
        eventually(lambda n=number, c=changes, t=text: t in refusal(f"bad{n}", c), text, 30.0)
    allowed = {"servers.image": "registry.example.org/x:1", "trainer.tolerations": [{"key": "gpu"}]}
    allowed["trainer.serviceAccountName"] = "s3-team"
    allowed["servers.pools"] = [{"name": "a", "image": "registry.example.org/x:1", "tolerations": None, "env": None}]
    allowed["servers.initContainers"] = [{"name": "a", "image": "registry.example.org/x:1"}]
    assert refusal("good", allowed) == ""
