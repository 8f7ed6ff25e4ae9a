"""Operators that are killed at any point, two operators, and an API server that restarts."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from areal_api.experiment import KIND
from areal_operator.child_watch import SELECTOR
from areal_operator.cluster import CHILD_KINDS, Cluster
from areal_operator.experiments import Experiments
from areal_operator.queueing.positions import Positions
from areal_operator.reconcile import Reconciler
from areal_operator.settings import Settings
from areal_operator.store import Store
from areal_operator.warning_events import NamespaceWarnings
from hack.cluster.control_plane import ControlPlane
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import end, run
from hack.testbed.kube_api import Api, eventually
from hack.testbed.operator_process import NAMESPACE, USER, OperatorProcess

SETTINGS = Settings(images={("trainer", "cpu"): "trainer:1", ("server", "cpu"): "server:1"}, retry_s=0.0)


class Killed(BaseException):
    """The process is killed."""


class DoomedCluster(Cluster):
    """A client whose process is killed directly after write number ``lifetime``."""

    lifetime = 10**9
    writes = 0

    async def request(self, method: str, path: str, **more: Any) -> Any:
        result = await super().request(method, path, **more)
        if method != "GET":
            self.writes += 1
            if self.writes >= self.lifetime:
                raise Killed
        return result


@pytest.fixture
def alone(operator: OperatorProcess) -> Iterator[None]:
    """No other operator is running."""
    operator.stop()
    yield
    operator.start()


@pytest.fixture
async def cluster(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DoomedCluster]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig(USER)))
    async with DoomedCluster() as cluster:
        yield cluster


async def reconcile_until(
    cluster: DoomedCluster, experiment: Experiment, until: Callable[[], bool], *, lifetime: int
) -> bool:
    """Reconcile until ``until``; the process is killed after ``lifetime`` writes, and another one continues.

    Returns whether it was killed.
    """
    cluster.writes, cluster.lifetime = 0, lifetime
    died = False
    key = (experiment.namespace.name, experiment.name)
    process = _Process(cluster)
    for _ in range(200):
        try:
            await process.relist(key[0])
            await process.reconciler.reconcile(key)
        except Killed:
            died, cluster.lifetime = True, 10**9
            process = _Process(cluster)
        if await asyncio.to_thread(until):
            return died
        await asyncio.sleep(0.05)
    raise AssertionError(f"not reached with a lifetime of {lifetime}: {experiment.status}")


class _Process:
    """A reconciler with the caches of a process that has just started."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._store, self._experiments = Store(), Experiments()
        warnings = NamespaceWarnings(cluster, max_age_s=0.0)
        self.reconciler = Reconciler(
            cluster,
            self._store,
            self._experiments,
            warnings,
            settings=SETTINGS,
            root_key=b"root",
            positions=Positions(cluster),
        )

    async def relist(self, namespace: str) -> None:
        """Bring the caches up to date."""
        for kind in CHILD_KINDS:
            listed = await self._cluster.list(kind, namespace, SELECTOR)
            self._store.replace(kind, listed.items, listed.version, namespace)
        for body in (await self._cluster.list(KIND, namespace)).items:
            self._experiments.put(body)


async def test_a_start_survives_a_kill_after_any_write(
    namespace: Namespace, alone: None, cluster: DoomedCluster
) -> None:
    lifetime, outcomes = 1, []
    while True:
        experiment = Experiment(namespace, f"n{lifetime}")
        experiment.apply(storage__whenDeleted="Delete")
        died = await reconcile_until(
            cluster, experiment, lambda e=experiment: e.status.get("phase") == "Running", lifetime=lifetime
        )
        status = experiment.status
        outcomes.append((status["attempt"], status["restarts"], status["disruptions"]))
        assert [name for name in namespace.names("Job") if name.startswith(f"n{lifetime}-")] == [
            f"n{lifetime}-trainer-1"
        ]
        experiment.delete()
        if not died:
            break
        lifetime += 1
    assert lifetime > 10  # at least one status and all children
    assert set(outcomes) == {(1, 0, 0)}


async def test_a_restart_counts_once_despite_a_kill_after_any_write(
    namespace: Namespace, alone: None, cluster: DoomedCluster
) -> None:
    lifetime, killed = 1, True
    while killed:
        namespace.behave("trainer", run)
        experiment = Experiment(namespace, f"n{lifetime}")
        experiment.apply(storage__whenDeleted="Delete")
        await reconcile_until(
            cluster, experiment, lambda e=experiment: e.status.get("phase") == "Running", lifetime=10**9
        )
        namespace.behave("trainer", end(1))
        job = f"n{lifetime}-trainer-1"
        eventually(lambda job=job: _has(namespace, job, "Failed"), "the Job has failed")
        namespace.behave("trainer", run)

        def runs_again(e: Experiment = experiment) -> bool:
            return e.status["phase"] == "Running" and e.status["attempt"] > 1

        killed = await reconcile_until(cluster, experiment, runs_again, lifetime=lifetime)
        assert (experiment.status["attempt"], experiment.status["restarts"]) == (2, 1)
        experiment.delete()
        lifetime += 1
    assert lifetime > 5  # at least the outcome, the attempt, the Job and its UID


def _has(namespace: Namespace, job: str, condition: str) -> bool:
    found = namespace.api.get("Job", namespace.name, job) or {}
    conditions = (found.get("status") or {}).get("conditions") or []
    return any(one["type"] == condition and one["status"] == "True" for one in conditions)


def test_changes_without_an_operator_are_seen_by_the_next_one(
    experiment: Experiment, operator: OperatorProcess
) -> None:
    namespace = experiment.namespace
    experiment.apply()
    experiment.until_phase("Running")
    operator.kill()
    namespace.api.delete("Service", namespace.name, "exp-server")
    namespace.behave("trainer", end(0))
    late = Experiment(namespace, "late").apply()
    eventually(lambda: _has(namespace, "exp-trainer-1", "Complete"), "the trainer has ended")
    operator.start()
    experiment.until_phase("Succeeded")
    late.until_phase("Succeeded")


def test_a_finished_run_stays_finished_after_a_restart(experiment: Experiment, operator: OperatorProcess) -> None:
    experiment.namespace.behave("trainer", end(0))
    experiment.apply()
    experiment.until_phase("Succeeded")
    operator.kill()
    experiment.namespace.api.delete("Job", experiment.namespace.name, "exp-trainer-1")
    operator.start()
    experiment.edit(runPolicy__backoffLimit=1)
    experiment.until(lambda now: now["observedGeneration"] == 2, "the edit is observed")
    assert experiment.status["phase"] == "Succeeded"
    assert experiment.namespace.names("Job") == []


def holder(api: Api) -> str:
    lease = api.get("Lease", NAMESPACE, "areal-operator") or {}
    return str((lease.get("spec") or {}).get("holderIdentity"))


def test_of_two_operators_one_reconciles_and_the_other_takes_over(
    experiment: Experiment, operator: OperatorProcess, plane: ControlPlane, logs: Path, api: Api
) -> None:
    second = OperatorProcess(plane, logs, identity="operator-1")
    second.start()
    try:
        experiment.apply()
        experiment.until_phase("Running")
        assert holder(api) == "operator-0"
        assert "areal_operator_leader 1.0" in operator.read("/metrics")
        assert "areal_operator_leader 0.0" in second.read("/metrics")
        assert "Started" not in second.log.read_text()
        operator.stop()  # releases the Lease
        eventually(lambda: holder(api) == "operator-1", "the other one takes over at once", 6.0)
        experiment.namespace.behave("trainer", end(0))
        experiment.until_phase("Succeeded")
        operator.start()
        second.kill()  # does not release it
        Experiment(experiment.namespace, "next").apply().until_phase("Succeeded", 30.0)
        assert holder(api) == "operator-0"
    finally:
        second.kill()
        if not operator.runs:
            operator.start()


def test_the_operator_survives_a_restart_of_the_api_server(
    experiment: Experiment, operator: OperatorProcess, plane: ControlPlane
) -> None:
    experiment.apply()
    experiment.until_phase("Running")
    plane.restart_api_server()
    experiment.namespace.behave("trainer", end(0))
    experiment.until_phase("Succeeded", 60.0)
    assert operator.runs
    assert operator.answers("/healthz")
    plane.restart_api_server()
    Experiment(experiment.namespace, "next").apply().until_phase("Succeeded", 60.0)


def test_an_idle_operator_writes_nothing_but_its_lease(
    experiment: Experiment, operator: OperatorProcess, plane: ControlPlane, api: Api
) -> None:
    experiment.apply()
    experiment.until_phase("Running")

    def written(seconds: float) -> set[tuple[str, str]]:
        before = _writes(plane)
        time.sleep(seconds)
        others = {("PATCH", "events")}  # the scheduler updates its own; the operator only creates events
        return {key for key, count in _writes(plane).items() if count != before.get(key, 0)} - others

    # Objects of earlier tests may still be collected.
    eventually(lambda: written(11.0) == {("PUT", "leases")}, "nothing but the Lease is written", 180.0)


def _writes(plane: ControlPlane) -> dict[tuple[str, str], int]:
    """Number of write requests for our kinds, by verb and resource."""
    counts: dict[tuple[str, str], int] = {}
    kinds = {plural for _, plural in CHILD_KINDS.values()} | {"grpoexperiments", "leases", "events"}
    for line in plane.kubectl("get", "--raw", "/metrics").splitlines():
        found = re.match(r'apiserver_request_total\{.*resource="(\w+)".*verb="(\w+)".*\} (\S+)', line)
        if found and found[1] in kinds and found[2] in ("POST", "PUT", "PATCH", "APPLY", "DELETE"):
            key = (found[2], found[1])
            counts[key] = counts.get(key, 0) + int(float(found[3]))
    return counts
