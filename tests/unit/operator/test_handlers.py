"""Watch handlers: what they cache, what they queue, and that no object ends a watch."""

from __future__ import annotations

import time
from typing import Any

import kopf
import pytest

from areal_api.generate.crd import PLURAL
from areal_operator.experiments import Experiments
from areal_operator.handlers import (
    WATCH_START_TIMEOUT_S,
    WatchGuard,
    experiment_handler,
    kopf_settings,
    make_registry,
)
from areal_operator.metrics import Metrics
from areal_operator.observed import Object
from areal_operator.store import Key
from areal_operator.work_queue import WorkQueue

KEY = ("ns", "exp")


def experiment(generation: int = 1, **status: Any) -> Object:
    return {"metadata": {"namespace": "ns", "name": "exp", "uid": "u", "generation": generation}, "status": status}


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
    assert (queue.depth, experiments.known()) == (1, [])


@pytest.mark.parametrize(
    "body", [{}, {"metadata": {}}, {"metadata": {"name": "x", "namespace": "ns"}}, {"metadata": None}]
)
async def test_an_object_that_cannot_be_read_ends_no_watch(body: Any, caplog: pytest.LogCaptureFixture) -> None:
    queue = WorkQueue[Key]()
    await experiment_handler(Experiments(), queue, Metrics())(event={"type": "ADDED", "object": body})
    assert caplog.text.count("the watch event cannot be processed") == 1


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


def watches(*namespaces: str | None) -> list[str]:
    """Names of kopf's tasks."""
    return [f"watcher for {PLURAL}.v1@{namespace}" for namespace in namespaces]


def test_a_watch_that_has_ended_is_found_in_its_namespace() -> None:
    tasks = watches("a", "b")
    guard = WatchGuard(("a", "b"), tasks=lambda: tasks)
    assert guard.dead() == {}
    tasks = watches("a")
    assert guard.dead() == {"b": [PLURAL]}


def test_a_watch_that_does_not_start_is_found_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = WatchGuard(tasks=list)
    assert guard.dead() == {}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + WATCH_START_TIMEOUT_S + 1)
    assert guard.dead() == {None: [PLURAL]}


def test_kopf_copies_no_objects_and_posts_nothing() -> None:
    settings = kopf_settings()
    assert settings.posting.enabled is False
    assert settings.networking.request_timeout == 30.0
    body = kopf.Body({"metadata": {"name": "exp"}, "spec": {"a": 1}})
    assert settings.persistence.diffbase_storage.build(body=body) == {}


def test_experiments_are_the_only_kind_that_kopf_watches() -> None:
    registry = make_registry(Experiments(), WorkQueue[Key](), Metrics())
    assert isinstance(registry, kopf.OperatorRegistry)
