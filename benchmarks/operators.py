"""What one custom resource costs: this operator, Kubeflow Trainer with JobSet, and KubeRay on one API server.

Nodes and pods are simulated. Requests come from the API server's audit log, so they are exact on a busy machine too.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from areal_api.experiment import KIND
from benchmarks.measure import Comparison
from hack.cluster.control_plane import ControlPlane
from hack.testbed.control_planes import bare_plane, prepare
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import FakeKubelet
from hack.testbed.kube_api import Api, Object, eventually
from hack.testbed.operator_process import USER, OperatorProcess
from hack.testbed.peer_operators import USERS, KubeflowTrainer, KubeRay, PeerOperator

COUNTS = (100, 1000)
WRITES = ("create", "update", "patch", "delete", "deletecollection")
READS = ("get", "list")
PODS = 2  # of each resource
QUIET_S, IDLE_S = 5.0, 60.0
CAPACITY = {"cpu": "100000", "memory": "1000Ti", "pods": "100000", "nvidia.com/gpu": "0"}


@dataclass(frozen=True)
class Cost:
    """Of ``count`` resources: until all run and the operator is quiet, then idle, then after a restart."""

    count: int
    seconds: float
    cpu: float  # CPU seconds until quiet
    writes: int
    reads: int
    empty_mb: float
    memory_mb: float
    idle_writes: int  # per minute, without Leases
    restart_seconds: float  # from ready until quiet
    restart_writes: int

    def report(self, name: str) -> str:
        """One line for the terminal."""
        return (
            f"{name}, {self.count}: {1000 * self.cpu / self.count:.1f} ms of CPU, {self.writes / self.count:.1f} "
            f"writes and {self.reads / self.count:.1f} reads each; all run after {self.seconds:.1f} s; "
            f"{self.empty_mb:.0f} → {self.memory_mb:.0f} MB; idle {self.idle_writes} writes per minute; "
            f"restart quiet after {self.restart_seconds:.1f} s, {self.restart_writes} writes"
        )


class _Ours:
    """This operator in the place of a peer."""

    name = "this operator"
    kind: str = KIND
    users: Sequence[str] = (USER,)

    def __init__(self, plane: ControlPlane, namespace: Namespace, folder: Path) -> None:
        self._process = OperatorProcess(plane, folder)
        self._namespace = namespace

    def install(self) -> None:
        """Done by ``prepare``."""

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._process.start()

    def kill(self) -> None:
        """Kill it if it runs."""
        if self._process.runs:
            self._process.kill()

    @property
    def pids(self) -> list[int]:
        """Of its process."""
        return [self._process.pid]

    def resource(self, name: str) -> Object:
        """An experiment with one server and one trainer pod."""
        return Experiment(self._namespace, name).body()


class AuditLog:
    """Counts the requests of users since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def requests(self, users: Sequence[str]) -> Counter[str]:
        """Requests by verb, without those for Leases and Events, which every operator may drop."""
        counts: Counter[str] = Counter()
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                entry = json.loads(line)
                resource = entry.get("objectRef", {}).get("resource")
                if entry["user"]["username"] in users and resource not in ("leases", "events"):
                    counts[entry["verb"]] += 1
        return counts


@dataclass
class _Bench:
    plane: ControlPlane
    api: Api
    log: AuditLog

    def cost(self, operator: PeerOperator, namespace: str, count: int, idle_s: float) -> Cost:
        """Create ``count`` resources at once, wait, stay idle, restart the operator."""
        operator.start()
        self._until_quiet(operator)
        empty, cpu = _memory_mb(operator.pids), _cpu_seconds(operator.pids)
        began = time.monotonic()
        for number in range(count):
            self.api.create(operator.resource(f"one-{number}"), namespace)
        eventually(lambda: self._all_run(namespace, count), f"the pods of {count} of {operator.name} run", 1800.0, 1.0)
        seconds = time.monotonic() - began
        requests = self._until_quiet(operator)
        cpu, memory = _cpu_seconds(operator.pids) - cpu, _memory_mb(operator.pids)
        time.sleep(idle_s)
        idle = self.log.requests(operator.users)
        operator.kill()
        operator.start()
        began = time.monotonic()
        restarted = self._until_quiet(operator)
        ready = time.monotonic() - began - QUIET_S
        operator.kill()
        per_minute = round(_sum(idle, WRITES) * 60 / idle_s)
        counts = (_sum(requests, WRITES), _sum(requests, READS))
        return Cost(count, seconds, cpu, *counts, empty, memory, per_minute, ready, _sum(restarted, WRITES))

    def _all_run(self, namespace: str, count: int) -> bool:
        pods = self.api.list("Pod", namespace)
        return sum(pod["status"].get("phase") == "Running" for pod in pods) == PODS * count

    def _until_quiet(self, operator: PeerOperator) -> Counter[str]:
        """The requests until there were no writes for ``QUIET_S``."""
        total: Counter[str] = Counter()
        last = time.monotonic()
        while time.monotonic() - last < QUIET_S:
            time.sleep(0.2)
            new = self.log.requests(operator.users)
            total += new
            if _sum(new, WRITES):
                last = time.monotonic()
        return total


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Resources per CPU second of the operator; the baselines are Kubeflow Trainer with JobSet, and KubeRay.

    Every side and count runs once: ``rounds`` is ignored, since requests do not vary and CPU seconds hardly do.
    """
    found: list[Comparison] = []
    for count in (3,) if small else COUNTS:
        with tempfile.TemporaryDirectory() as name:
            costs = _costs(Path(name), count, 5.0 if small else IDLE_S)
        (_, mine), *peers = costs
        notes = [cost.report(side) for side, cost in costs]
        for index, (peer, cost) in enumerate(peers):
            rates = [count / mine.cpu], [count / cost.cpu]
            work = f"{count} resources of two pods each, until all run and the operator is quiet"
            more = notes if index == 0 else []
            found.append(Comparison("operators", work, "resources/CPU s", rates[0], peer, rates[1], 1.0, more))
    return found


def _costs(folder: Path, count: int, idle_s: float) -> list[tuple[str, Cost]]:
    """Every side on one API server, one after the other."""
    with bare_plane(folder / "plane", audited=True, admins=USERS) as plane:
        prepare(plane, folder)
        api = Api(plane.url, plane.ca, plane.token())
        with _kubelet(api) as kubelet:
            bench = _Bench(plane, api, AuditLog(plane.audit_log))
            namespaces = [Namespace(api, kubelet, f"bench-{number}") for number in range(3)]
            ours = _Ours(plane, namespaces[0], folder)
            sides: list[PeerOperator] = [ours, KubeflowTrainer(plane, api, folder), KubeRay(plane, folder)]
            costs = []
            for side, namespace in zip(sides, namespaces, strict=True):
                api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": namespace.name}})
                side.install()
                try:
                    costs.append((side.name, bench.cost(side, namespace.name, count, idle_s)))
                finally:
                    side.kill()
            return costs


@contextmanager
def _kubelet(api: Api) -> Iterator[FakeKubelet]:
    kubelet = FakeKubelet(api, selector="", period_s=1.0, capacity=CAPACITY)
    kubelet.start()
    try:
        yield kubelet
    finally:
        kubelet.stop()


def _sum(counts: Counter[str], verbs: Sequence[str]) -> int:
    return sum(counts[verb] for verb in verbs)


def _cpu_seconds(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


def _memory_mb(pids: Sequence[int]) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6
