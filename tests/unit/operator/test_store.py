"""The operator's memory, queue and settings."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from areal_api import resource_names
from areal_operator.observed import Object
from areal_operator.settings import Settings
from areal_operator.store import FINGERPRINT, Store, fingerprint
from areal_operator.work_queue import WorkQueue

KEY = ("ns", "exp")


def child(version: int, *, uid: str = "u1", name: str = "exp-server", owner: str = "e1", **more: Any) -> Object:
    """A Service of the experiment as the API server gives it."""
    metadata = {
        "name": name,
        "namespace": "ns",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": resource_names.labels("exp"),
        "ownerReferences": [{"uid": owner, "controller": True}],
    }
    return {"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": {}, **more}


def known(store: Store) -> list[Object]:
    return store.objects(KEY, "e1").get("Service", [])


def test_of_two_reports_the_newer_one_counts() -> None:
    store = Store()
    assert store.put(child(5, status={"a": 1})) == KEY
    store.put(child(4, status={"a": 0}))
    assert known(store)[0]["status"] == {"a": 1}


def test_what_was_deleted_does_not_come_back_from_an_older_list() -> None:
    store = Store()
    store.put(child(5))
    store.remove(child(9))
    store.replace("Service", [child(5)], version=8)
    assert known(store) == []
    store.put(child(12, uid="u2"))
    assert len(known(store)) == 1


def test_a_list_shows_what_the_watch_missed() -> None:
    store = Store()
    store.put(child(5))
    store.put(child(6, uid="u2", name="exp-trainer"))
    assert store.replace("Service", [child(7)], version=8) == {KEY}
    assert [obj["metadata"]["name"] for obj in known(store)] == ["exp-server"]
    assert store.replace("Service", [child(7)], version=9) == set()


def test_an_object_newer_than_the_list_stays() -> None:
    store = Store()
    store.put(child(20))
    store.replace("Service", [], version=10)
    assert len(known(store)) == 1


def test_children_of_an_earlier_experiment_of_the_name_are_not_its_own() -> None:
    store = Store()
    store.put(child(5, owner="e0"))
    assert known(store) == []


def test_an_edited_label_does_not_hide_a_child() -> None:
    store = Store()
    store.put(child(5))
    edited = child(6)
    edited["metadata"]["labels"] = {resource_names.EXPERIMENT: "other"}
    assert store.put(edited) == KEY
    assert known(store)[0][FINGERPRINT] != fingerprint(child(5))


def test_the_fingerprint_sees_edits_and_no_status() -> None:
    assert fingerprint(child(5, status={"a": 1})) == fingerprint(child(6, status={"a": 2}))
    assert fingerprint(child(5)) != fingerprint(child(5, spec={"clusterIP": "None"}))


async def test_a_key_is_worked_on_once_at_a_time_and_again_after_news() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 0.05) == "a"


async def test_an_earlier_time_wins_and_a_later_one_does_not_delay() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", 60.0)
    queue.add("a", 0.0)
    queue.add("a", 60.0)
    assert await asyncio.wait_for(queue.get(), 0.05) == "a"
    assert queue.depth == 0


async def test_failures_wait_twice_as_long_each_time_until_one_succeeds() -> None:
    queue: WorkQueue[str] = WorkQueue()
    assert [queue.fail("a") for _ in range(4)] == [1.0, 2.0, 4.0, 8.0]
    assert max(queue.fail("a") for _ in range(20)) == 300.0
    queue.succeed("a")
    assert queue.fail("a") == 1.0


def test_settings_come_from_the_environment_or_are_refused() -> None:
    settings = Settings.from_env({"AREAL_WATCH_NAMESPACES": "a, b", "AREAL_OPERATOR_URL": "http://x/"})
    assert (settings.watched, settings.progress_url) == (("a", "b"), "http://x")
    with pytest.raises(ValueError, match="AREAL_OPERATOR_PORT is 'x'"):
        Settings.from_env({"AREAL_OPERATOR_PORT": "x"})
