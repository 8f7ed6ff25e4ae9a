"""The operator on a real API server: time until an experiment's objects exist, and the operator's own cost."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from areal_api import resource_names
from areal_operator.cluster import path_of
from benchmarks.measure import Comparison, spread
from hack.cluster.control_plane import ControlPlane
from hack.testbed.control_planes import bare_plane, prepare
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import FakeKubelet
from hack.testbed.kube_api import Api, Object, eventually
from hack.testbed.operator_process import OperatorProcess

KINDS = (
    *("Secret", "ServiceAccount", "PersistentVolumeClaim", "NetworkPolicy", "Service"),
    *("StatefulSet", "Job"),
)
IDLE_S = 60.0


@dataclass
class _Bench:
    plane: ControlPlane
    api: Api
    kubelet: FakeKubelet
    operator: OperatorProcess

    def namespace(self, name: str) -> Namespace:
        self.api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
        return Namespace(self.api, self.kubelet, name)

    def memory(self) -> float:
        """Resident memory of the operator in MB."""
        return psutil.Process(self.operator.pid).memory_info().rss / 1e6


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Experiments per second, sequentially; the baseline is a plain client applying the same objects."""
    count = 3 if small else 100
    with tempfile.TemporaryDirectory() as folder, _bench(Path(folder)) as bench:
        empty = bench.memory()
        namespace = bench.namespace("bench")
        _objects_after(Experiment(namespace, "warm"))
        ours = [_objects_after(Experiment(namespace, f"one-{number}")) for number in range(count)]
        copies = bench.namespace("copies")
        plain = [_apply_copies(bench, namespace, copies, f"one-{number}") for number in range(count)]
        eventually(lambda: _all_run(namespace, count + 1), f"{count} experiments run", 300.0)
        notes = [
            f"apply → all objects exist: p50 {_percentile(ours, 50):.3f} s, p99 {_percentile(ours, 99):.3f} s",
            f"memory of the operator: {empty:.0f} MB with none, {bench.memory():.0f} MB with {count + 1} experiments",
            _idle_writes(bench, 5.0 if small else IDLE_S),
            _progress(bench, namespace, 2 if small else max(rounds, 10)),
        ]
        work = f"{count} experiments, sequentially, until all their objects exist"
        sides = ([1 / s for s in ours], [1 / s for s in plain])
        return [Comparison("reconcile", work, "experiments/s", sides[0], "plain apply", sides[1], notes=notes)]


@contextmanager
def _bench(folder: Path) -> Iterator[_Bench]:
    with bare_plane(folder / "plane") as plane:
        prepare(plane, folder)
        api = Api(plane.url, plane.ca, plane.token())
        kubelet = FakeKubelet(api)
        kubelet.start()
        operator = OperatorProcess(plane, folder)
        operator.start()
        try:
            yield _Bench(plane, api, kubelet, operator)
        finally:
            operator.stop()
            kubelet.stop()


def _objects_after(experiment: Experiment) -> float:
    """Seconds from apply until the experiment's last object exists."""
    api, namespace = experiment.namespace.api, experiment.namespace.name
    last = [
        ("StatefulSet", resource_names.servers(experiment.name)),
        ("Job", resource_names.trainer_job(experiment.name, 1)),
    ]
    began = time.perf_counter()
    experiment.apply()
    while any(api.get(kind, namespace, name) is None for kind, name in last):
        time.sleep(0.002)
    return time.perf_counter() - began


def _apply_copies(bench: _Bench, source: Namespace, target: Namespace, name: str) -> float:
    """Seconds that a client takes to apply copies of an experiment's objects one by one in another namespace."""
    selector = resource_names.selector(resource_names.labels(name))
    found = [(kind, obj) for kind in KINDS for obj in bench.api.list(kind, source.name, selector)]
    bodies = [(kind, _bare(kind, obj, target.name)) for kind, obj in found]
    headers = {"Authorization": f"Bearer {bench.plane.token()}", "Content-Type": "application/apply-patch+yaml"}
    with httpx.Client(base_url=bench.plane.url, verify=str(bench.plane.ca), headers=headers, trust_env=False) as client:
        client.get("/readyz")
        began = time.perf_counter()
        for kind, body in bodies:
            path = path_of(kind, target.name, body["metadata"]["name"])
            answer = client.patch(path, params={"fieldManager": "plain", "force": "true"}, json=body)
            answer.raise_for_status()
        return time.perf_counter() - began


def _bare(kind: str, obj: Object, namespace: str) -> Object:
    metadata = {"name": obj["metadata"]["name"], "namespace": namespace, "labels": obj["metadata"]["labels"]}
    kept = {key: value for key, value in obj.items() if key not in ("metadata", "status", "kind", "apiVersion")}
    spec: dict[str, Any] = kept.get("spec", {})
    for key in ("clusterIP", "clusterIPs", "volumeName"):
        spec.pop(key, None)
    if kind == "Job":  # set by the Job controller
        spec.pop("selector", None)
        spec["template"]["metadata"].get("labels", {}).clear()
    version = {"StatefulSet": "apps/v1", "Job": "batch/v1"}
    version["NetworkPolicy"] = "networking.k8s.io/v1"
    return {"apiVersion": version.get(kind, "v1"), "kind": kind, "metadata": metadata, **kept}


def _all_run(namespace: Namespace, count: int) -> bool:
    phases = [one.get("status", {}).get("phase") for one in namespace.list("GRPOExperiment")]
    return phases.count("Running") == count


def _idle_writes(bench: _Bench, seconds: float) -> str:
    """Writes that the API server counts while idle, those of the Lease separately."""
    bench.kubelet.stop()  # its writes are not the operator's
    time.sleep(2.0 if seconds < IDLE_S else 20.0)
    before = _writes(bench)
    time.sleep(seconds)
    after = _writes(bench)
    grown = {key: after[key] - before.get(key, 0.0) for key in after if after[key] > before.get(key, 0.0)}
    lease = sum(value for (_, resource), value in grown.items() if resource == "leases")
    others = {f"{verb} {resource}": value for (verb, resource), value in grown.items() if resource != "leases"}
    each = ", ".join(f"{name} {value:.0f}" for name, value in sorted(others.items()))
    per_minute = 60 / seconds
    text = f"idle: {per_minute * lease:.0f} Lease writes per minute, {per_minute * sum(others.values()):.0f} others"
    return text + (f" ({each})" if each else "")


def _writes(bench: _Bench) -> dict[tuple[str, str], float]:
    counts: dict[tuple[str, str], float] = {}
    for line in bench.plane.kubectl("get", "--raw", "/metrics").splitlines():
        if not line.startswith("apiserver_request_total{"):
            continue
        labels, _, value = line.removeprefix("apiserver_request_total{").rpartition("} ")
        fields = dict(part.split("=", 1) for part in labels.replace('"', "").split(",") if "=" in part)
        if fields.get("verb") in ("POST", "PUT", "PATCH", "APPLY", "DELETE"):
            key = (fields["verb"], fields.get("resource", ""))
            counts[key] = counts.get(key, 0.0) + float(value)
    return counts


def _progress(bench: _Bench, namespace: Namespace, rounds: int) -> str:
    """Seconds from a trainer's report until the step is in the status; reports 4 s apart, so none is rate-limited."""
    experiment = Experiment(namespace, "one-0")
    uid = (experiment.get() or {})["metadata"]["uid"]
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [resource_names.progress_audience(uid)]},
    }
    account = (
        f"/api/v1/namespaces/{namespace.name}/serviceaccounts/{resource_names.service_account(experiment.name)}/token"
    )
    token = str(bench.api.post(account, body)["status"]["token"])
    url = f"{bench.operator.url}/v1/namespaces/{namespace.name}/experiments/{experiment.name}/progress"
    taken = []
    for step in range(1, rounds + 1):
        report = {"step": step, "totalSteps": 100, "version": step, "reward": 0.5, "tokensPerSecond": 1.0}
        began = time.perf_counter()
        httpx.post(url, json=report, headers={"Authorization": f"Bearer {token}"}, trust_env=False).raise_for_status()
        while experiment.status.get("step") != step:
            time.sleep(0.005)
        taken.append(time.perf_counter() - began)
        time.sleep(4.0)
    return f"report → status: {spread(taken)} s"


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]
