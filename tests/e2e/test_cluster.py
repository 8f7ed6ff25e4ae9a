"""The cluster's own functions that the other tests rely on: DNS, routes, volumes and node restarts."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from hack.cluster.kind_cluster import REGISTRY, KindCluster
from hack.testbed.kube_api import eventually

IMAGE = f"{REGISTRY}/areal-operator"
SERVE = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8000)"
FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).status)"


def pod(cluster: KindCluster, name: str, node: str, **spec: Any) -> dict[str, Any]:
    """A pod allowed by the Pod Security level "restricted" that serves its working directory on port 8000."""
    security = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "main",
        "image": f"{IMAGE}:{cluster.image_tag}",
        "command": ["python3", "-c", SERVE],
        "securityContext": security,
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    container |= spec.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "peers"}},
        "spec": {
            "hostname": name,
            "subdomain": "peers",
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
            "containers": [container],
            **spec,
        },
    }


def service(name: str, **spec: Any) -> dict[str, Any]:
    """A service for the pods on port 8000."""
    ports = [{"port": 8000}]
    selector = {"app": "peers"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": ports, **spec},
    }


def apply(cluster: KindCluster, namespace: str, *objects: dict[str, Any]) -> None:
    body = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    cluster.kubectl("--namespace", namespace, "apply", "--filename", "-", text=json.dumps(body))


def fetch(cluster: KindCluster, namespace: str, name: str, address: str) -> str:
    """HTTP status of a request from a pod to an address."""
    url = f"http://{address}:8000/"
    return cluster.kubectl("--namespace", namespace, "exec", name, "--", "python3", "-c", FETCH, url).strip()


def reaches(cluster: KindCluster, namespace: str, name: str, address: str) -> None:
    """Wait until a pod gets an answer; DNS and kube-proxy may learn of a pod slightly later than kubectl."""

    def answered() -> bool:
        try:
            return fetch(cluster, namespace, name, address) == "200"
        except subprocess.CalledProcessError:
            return False

    eventually(answered, f"{name} reaches {address}", 30.0, pause_s=1.0)


def test_pods_of_both_nodes_reach_each_other_by_name_address_and_service(cluster: KindCluster, namespace: str) -> None:
    nodes = {"first": cluster.control_plane, "second": cluster.worker}
    apply(
        cluster,
        namespace,
        service("peers", clusterIP="None", publishNotReadyAddresses=True),
        service("any"),
        *[pod(cluster, name, node) for name, node in nodes.items()],
    )
    cluster.wait("condition=Ready", "pod/first", "pod/second", namespace=namespace)
    for name, other in (("first", "second"), ("second", "first")):
        address = cluster.kubectl(
            *["--namespace", namespace, "get", "pod", other, "--output", "jsonpath={.status.podIP}"]
        )
        for target in (address, f"{other}.peers", "any"):
            reaches(cluster, namespace, name, target)


def test_a_volume_of_the_default_class_outlives_its_pod_and_a_node_restart(
    cluster: KindCluster, namespace: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    apply(cluster, namespace, claim, pod(cluster, "writer", cluster.worker, container=mount, volumes=volumes))
    cluster.wait("condition=Ready", "pod/writer", namespace=namespace)
    inside = ["--namespace", namespace, "exec"]
    cluster.kubectl(*inside, "writer", "--", "sh", "-c", "echo kept >/data/file")
    cluster.kubectl("--namespace", namespace, "delete", "pod", "writer")
    cluster.stop_node(cluster.worker)
    cluster.start_node(cluster.worker)
    apply(cluster, namespace, pod(cluster, "reader", cluster.worker, container=mount, volumes=volumes))
    cluster.wait("condition=Ready", "pod/reader", namespace=namespace)
    assert cluster.kubectl(*inside, "reader", "--", "cat", "/data/file") == "kept\n"


@pytest.mark.parametrize("role", ["control_plane", "worker"])
def test_external_names_are_resolved_by_the_host(cluster: KindCluster, namespace: str, role: str) -> None:
    """The API server's container name is known to Docker's resolver only, not to Kubernetes."""
    apply(cluster, namespace, pod(cluster, "asker", getattr(cluster, role)))
    cluster.wait("condition=Ready", "pod/asker", namespace=namespace)
    lookup = f"import socket; print(socket.gethostbyname('{cluster.control_plane}'))"
    address = cluster.kubectl("--namespace", namespace, "exec", "asker", "--", "python3", "-c", lookup).strip()
    assert address == cluster.on_node(cluster.worker, "getent", "ahostsv4", cluster.control_plane).split()[0]
