"""A volume on the worker as an administrator would provision it: of bounded size, or mountable by many pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hack.cluster.kind_cluster import KindCluster
from hack.testbed.cluster_runs import ClusterRun
from hack.testbed.kube_api import eventually

CLEAR = '! mountpoint -q "$1" || umount "$1"; rm -rf "$1"'
FILL = "dd if=/dev/zero bs=$2 oflag=append conv=notrunc status=none 2>/dev/null >>$1/ballast || true"


@dataclass(frozen=True)
class NodeVolume:
    """A directory on the worker and its PersistentVolume."""

    cluster: KindCluster
    name: str
    path: str

    def fill(self) -> None:
        """Use all remaining space."""
        for piece in ("1M", "4k"):
            self._do("-c", FILL, "sh", self.path, piece)

    def free(self) -> None:
        """Free the space that ``fill`` used."""
        self._do("-c", 'rm -f "$1/ballast"', "sh", self.path)

    def make(self, access_mode: str, size: str | None) -> None:
        """Create the volume. ``size``: in tmpfs's format; such a volume loses its data when the node stops."""
        self.cluster.kubectl("delete", "pv", self.name, "--ignore-not-found")  # left by killed tests
        self._do("-c", f'{CLEAR}; mkdir -p "$1" && chmod 0777 "$1"', "sh", self.path)
        if size is not None:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", self.path]
            self.cluster.on_node(self.cluster.worker, *mount)
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.cluster.worker]}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": self.name},
            "spec": {
                "capacity": {"storage": "2Gi"},
                "accessModes": [access_mode],
                "storageClassName": self.name,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": self.path},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        }
        self.cluster.kubectl("apply", "-f", "-", text=json.dumps(volume))

    def remove(self) -> None:
        """Delete the volume and its contents."""
        self.cluster.kubectl("delete", "pv", self.name, "--wait=false")
        self._do("-c", CLEAR, "sh", self.path)

    def _do(self, *arguments: str) -> None:
        self.cluster.on_node(self.cluster.worker, "sh", *arguments)


@contextmanager
def node_volume(run: ClusterRun, access_mode: str, *, size: str | None = None) -> Iterator[NodeVolume]:
    """A volume that the run binds; run and volume are deleted afterwards."""
    volume = NodeVolume(run.cluster, f"volume-{run.namespace}", f"/mnt/{run.namespace}")
    volume.make(access_mode, size)
    run.changes |= {"storage.storageClassName": volume.name, "storage.accessModes": [access_mode]}
    try:
        yield volume
    finally:
        run.kubectl("delete", "grpo", run.name, "--ignore-not-found", "--wait=true", "--timeout=60s")
        eventually(lambda: not run.get("pods"), "the pods to be deleted", 240.0, pause_s=1.0)
        volume.remove()
