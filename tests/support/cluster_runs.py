"""Experiments on a real cluster: apply, look, kill, wait, and what must hold of a run afterwards."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from areal_api import children
from areal_api.tree import set_in
from cluster.kind_cluster import KindCluster
from support.kube_api import Object, eventually

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "examples" / "tiny" / "experiment.yaml"
RUNS = "runs"  # cluster.fileroot of the example, below the volume


@dataclass
class ClusterRun:
    """One experiment in a namespace. ``changes`` are dotted keys below ``spec`` of the tiny example."""

    cluster: KindCluster
    namespace: str
    name: str = "tiny"
    changes: dict[str, Any] = field(default_factory=dict)

    def apply(self) -> ClusterRun:
        """``kubectl apply`` the example; the very file where nothing is changed."""
        data = yaml.safe_load(TINY.read_text())
        if not self.changes and self.name == data["metadata"]["name"]:
            self.kubectl("apply", "-f", str(TINY))
            return self
        data["metadata"]["name"] = self.name
        for key, value in self.changes.items():
            set_in(data, f"spec.{key}", copy.deepcopy(value))
        self.kubectl("apply", "-f", "-", text=json.dumps(data))
        return self

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """kubectl in the namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, text=text)

    def patch(self, spec: Object) -> None:
        """Change the spec."""
        body = json.dumps({"spec": spec})
        self.kubectl("patch", "grpo", self.name, "--type", "merge", "--patch", body)

    def get(self, kind: str, selector: str = "") -> list[Object]:
        """Objects of the experiment of one kind."""
        labels = children.selector(children.labels(self.name)) + (f",{selector}" if selector else "")
        return list(json.loads(self.kubectl("get", kind, "--selector", labels, "--output", "json"))["items"])

    def pods(self, component: str) -> list[Object]:
        """Pods of a component that are not on their way out."""
        found = self.get("pods", f"{children.COMPONENT}={component}")
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    @property
    def status(self) -> Object:
        """The experiment's status."""
        found = json.loads(self.kubectl("get", "grpo", self.name, "--output", "json"))
        return dict(found.get("status") or {})

    def condition(self, kind: str) -> Object:
        """A condition; empty where it is missing."""
        found = [one for one in self.status.get("conditions", []) if one["type"] == kind]
        return dict(found[0]) if found else {}

    def until(self, what: Callable[[Object], bool], text: str, timeout_s: float) -> Object:
        """Wait for a status. A run that has failed meanwhile fails the test at once, with its message."""
        last: Object = {}

        def look() -> Object | None:
            nonlocal last
            last = self.status
            if what(last):
                return last
            assert last.get("phase") not in ("Failed", "Succeeded"), f"ended before {text}: {last}"
            return None

        try:
            return eventually(look, text, timeout_s, pause_s=1.0)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last status was {last}\n{self.describe()}") from None

    def until_phase(self, phase: str, timeout_s: float = 240.0) -> Object:
        """Wait for a phase."""
        return self.until(lambda status: status.get("phase") == phase, f"phase {phase}", timeout_s)

    def until_step(self, step: int, timeout_s: float = 300.0) -> Object:
        """Wait until a number of steps is done."""
        return self.until(lambda status: (status.get("step") or 0) >= step, f"step {step}", timeout_s)

    def kill_pod(self, component: str, index: int = 0) -> str:
        """Kill a pod without grace; its name."""
        pods = sorted(self.pods(component), key=lambda pod: pod["metadata"]["name"])
        name: str = pods[index]["metadata"]["name"]
        self.kubectl("delete", "pod", name, "--grace-period=0", "--force")
        return name

    def kill_container(self, component: str, pattern: str) -> None:
        """SIGKILL the oldest process of a component's pod whose command line matches; the pod stays."""
        pod = self.pods(component)[0]
        node = pod["spec"]["nodeName"]
        uid = pod["metadata"]["uid"].replace("-", "[-_]")
        script = (
            f"for pid in $(pgrep -of '{pattern}'; pgrep -f '{pattern}'); do "
            f"grep -q '{uid}' /proc/$pid/cgroup && kill -9 $pid && exit 0; done; exit 1"
        )
        self.cluster.on_node(node, "sh", "-c", script)

    def run_file(self, name: str) -> str:
        """A file of the run directory, read from the volume on the node that has it."""
        claim = json.loads(self.kubectl("get", "pvc", children.volume_claim(self.name), "--output", "json"))
        volume = json.loads(self.kubectl("get", "pv", claim["spec"]["volumeName"], "--output", "json"))
        source = volume["spec"].get("hostPath") or volume["spec"]["local"]
        path = PurePosixPath(source["path"])
        return self.cluster.on_node(self.cluster.worker, "sh", "-c", f"cat {path}/{self.name}/*/{name}")

    def stats(self) -> list[Object]:
        """Lines of stats.jsonl."""
        return [json.loads(line) for line in self.run_file("stats.jsonl").splitlines()]

    def summary(self) -> Object:
        """summary.json."""
        return dict(json.loads(self.run_file("summary.json")))

    def requests_answered(self, index: int) -> int:
        """Requests for tokens that a server has answered since its pod began."""
        log = self.kubectl("logs", f"{children.servers(self.name)}-{index}")
        return log.count("POST /generate")

    @contextmanager
    def small_volume(self, size: str) -> Iterator[None]:
        """A volume of a bounded size on the worker, which the run then takes."""
        path, name = f"/mnt/{self.namespace}", f"small-{self.namespace}"
        self.cluster.on_node(self.cluster.worker, "mkdir", "-p", path)
        self.cluster.on_node(self.cluster.worker, "mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", path)
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "2Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": name,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": path},
            },
        }
        self.cluster.kubectl("apply", "-f", "-", text=json.dumps(volume))
        self.changes["storage.storageClassName"] = name
        try:
            yield
        finally:
            self.kubectl("delete", "grpo", self.name, "--wait=true", "--timeout=60s")
            eventually(lambda: not self.get("pods"), "pods gone", 240.0, pause_s=1.0)
            self.cluster.kubectl("delete", "pv", name, "--wait=false")
            self.cluster.on_node(self.cluster.worker, "umount", path)

    def describe(self) -> str:
        """What a person would look at next."""
        parts = []
        for arguments in (["get", "grpo,pods,pvc,jobs,events"], ["describe", "grpo", self.name]):
            try:
                parts.append(self.kubectl(*arguments))
            except subprocess.CalledProcessError as error:
                parts.append(str(error.stderr))
        return "\n".join(parts)

    def check_finished(self, steps: int, staleness: int = 2) -> None:
        """What holds of every finished run: each step once, no sample over the bound, everything freed but the logs."""
        stats = self.stats()
        assert [line["step"] for line in stats] == list(range(1, steps + 1))
        assert max(line["staleness/max"] for line in stats) <= staleness
        assert self.summary()["steps"] == steps
        eventually(lambda: not self.get("pods", f"{children.COMPONENT}={children.SERVER}"), "servers freed", 150.0)
