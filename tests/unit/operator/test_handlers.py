"""Watch handlers: what they cache, what they queue, and that no object ends a watch."""

from __future__ import annotations

import time
from typing import Any

import kopf
import pytest

from areal_api import resource_names
from areal_api.generate.crd import PLURAL
from areal_operator.cluster import CHILD_KINDS
from areal_operator.handlers import (
    WATCH_START_TIMEOUT_S,
    Experiments,
    WatchGuard,
    child_handler,
    experiment_handler,
    kopf_settings,
    make_registry,
)
from areal_operator.metrics import Metrics
from areal_operator.observed import Object
from areal_operator.store import Key, Store
from areal_operator.work_queue import WorkQueue

KEY = ("ns", "exp")


def experiment(generation: int = 1, **status: Any) -> Object:
    return {"metadata": {"namespace": "ns", "name": "exp", "uid": "u", "generation": generation}, "status": status}


def test_progress_needs_no_reconcile_and_an_edit_does() -> None:
    experiments = Experiments()
    assert experiments.put(experiment(phase="Running"))
    assert not experiments.put(experiment(phase="Running", step=3, reward=0.5))
    assert experiments.bodies[KEY]["status"]["step"] == 3
    assert experiments.put(experiment(2, phase="Running", step=3))
    assert experiments.put(experiment(2, phase="Failed", step=3))
    experiments.remove(KEY)
    assert experiments.bodies == {}
    assert experiments.put(experiment(2, phase="Failed", step=3))


def test_a_change_of_the_policys_health_needs_a_reconcile() -> None:
    experiments = Experiments()
    assert experiments.put(experiment(phase="Running", step=1, healthWarnings=[], collapsed=False, rollbacks=0))
    assert not experiments.put(experiment(phase="Running", step=2, healthWarnings=[], collapsed=False, rollbacks=0))
    assert experiments.put(experiment(phase="Running", step=3, healthWarnings=["drift"], collapsed=False, rollbacks=0))


def child(version: int, **metadata: Any) -> Object:
    labels = resource_names.labels("exp")
    base = {"name": "exp-server", "namespace": "ns", "uid": "c", "resourceVersion": str(version), "labels": labels}
    return {"metadata": {**base, **metadata}, "spec": {}}


async def test_events_of_experiments_queue_their_key() -> None:
    experiments, queue, metrics = Experiments(), WorkQueue[Key](), Metrics()
    on_event = experiment_handler(experiments, queue, metrics)
    metrics.last_event_at = 0.0
    await on_event(event={"type": "ADDED", "object": experiment(phase="Running")}, logger=None)
    assert await queue.get() == KEY
    assert metrics.last_event_at > 0.0
    queue.done(KEY)
    await on_event(event={"type": "MODIFIED", "object": experiment(phase="Running", step=1)})
    assert queue.depth == 0
    await on_event(event={"type": "DELETED", "object": experiment()})
    assert (queue.depth, experiments.bodies) == (1, {})


async def test_events_of_children_update_the_store_and_queue_their_experiment() -> None:
    store, queue = Store(), WorkQueue[Key]()
    on_event = child_handler("Service", store, queue, Metrics())
    await on_event(event={"type": None, "object": child(1)})
    assert store.get(KEY, "Service", "exp-server") is not None
    await on_event(event={"type": "DELETED", "object": child(2)})
    assert store.get(KEY, "Service", "exp-server") is None
    assert queue.depth == 1
    await on_event(event={"type": "ADDED", "object": child(3, uid="d", labels={})})
    assert queue.depth == 1


@pytest.mark.parametrize(
    "body", [{}, {"metadata": {}}, {"metadata": {"name": "x", "namespace": "ns"}}, {"metadata": None}]
)
async def test_an_object_that_cannot_be_read_ends_no_watch(body: Any, caplog: pytest.LogCaptureFixture) -> None:
    queue = WorkQueue[Key]()
    for on_event in (
        experiment_handler(Experiments(), queue, Metrics()),
        child_handler("Job", Store(), queue, Metrics()),
    ):
        await on_event(event={"type": "ADDED", "object": body})
    assert caplog.text.count("the watch event cannot be processed") == 2


async def test_a_deeply_nested_status_ends_no_watch(caplog: pytest.LogCaptureFixture) -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    await experiment_handler(Experiments(), WorkQueue[Key](), Metrics())(
        event={"type": "ADDED", "object": experiment(phase=deep)}
    )
    assert "RecursionError" in caplog.text
    while deep:  # freeing a deep structure at once would recurse, too
        deep = deep["a"]


def watches(*namespaces: str | None, without: tuple[str, ...] = ()) -> list[str]:
    """Names of kopf's tasks."""
    plurals = [plural for _, plural in CHILD_KINDS.values()] + [PLURAL]
    names = [f"watcher for {plural}.v1@{namespace}" for plural in plurals for namespace in namespaces]
    return [name for name in names if name not in without]


def test_a_watch_that_has_ended_is_found_in_its_namespace() -> None:
    tasks = watches("a", "b")
    guard = WatchGuard(("a", "b"), tasks=lambda: tasks)
    assert guard.dead() == {}
    tasks = watches("a", "b", without=("watcher for jobs.v1@b",))
    assert guard.dead() == {"b": ["jobs"]}


def test_a_watch_that_does_not_start_is_found_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = watches(None, without=(f"watcher for {PLURAL}.v1@None",))
    guard = WatchGuard(tasks=lambda: tasks)
    assert guard.dead() == {}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + WATCH_START_TIMEOUT_S + 1)
    assert guard.dead() == {None: [PLURAL]}


def test_kopf_watches_only_labelled_children_and_posts_nothing() -> None:
    settings = kopf_settings()
    assert settings.posting.enabled is False
    assert settings.networking.request_timeout == 30.0


def test_all_watched_kinds_have_a_handler() -> None:
    registry = make_registry(Store(), Experiments(), WorkQueue[Key](), Metrics())
    assert isinstance(registry, kopf.OperatorRegistry)
