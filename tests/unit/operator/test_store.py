"""The cache of watched children: of two reports the newer one counts, and deleted Jobs are remembered."""

from __future__ import annotations

from typing import Any

from areal_api import resource_names
from areal_operator.observed import DELETION_MISSED, DELETION_WATCHED, LAST_SEEN, Object
from areal_operator.store import FINGERPRINT, MAX_DELETED, Store, fingerprint, last_other_manager, owns_all, slim

KEY = ("ns", "exp")


def child(version: int, *, uid: str = "u1", name: str = "exp-server", owner: str = "e1", **more: Any) -> Object:
    """A Service of the experiment as returned by the API server."""
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
    assert store.put(child(5, spec={"a": 1})) == KEY
    assert store.put(child(4, spec={"a": 0})) is None
    assert known(store)[0][FINGERPRINT] == fingerprint(child(5, spec={"a": 1}))


def test_a_change_that_no_decision_depends_on_is_not_reported() -> None:
    store = Store()
    store.put(child(5))
    unread = child(6, status={"loadBalancer": {}})
    unread["metadata"]["annotations"] = {"team": "x"}
    assert store.put(unread) is not None  # without ownership information, any annotation may be the operator's
    store.put(trainer_pod(7, "Running"))
    pod = trainer_pod(8, "Running")
    pod["status"]["hostIP"] = "10.0.0.1"
    assert store.put(pod) is None
    assert store.put(trainer_pod(9, "Succeeded")) == KEY


def test_a_version_that_differs_in_the_status_keeps_the_fingerprint_and_no_other() -> None:
    ours = (resource_names.OPERATOR, {"f:spec": {"f:replicas": {}}, "f:metadata": {"f:labels": {"f:a": {}}}})

    def version(number: int, generation: int, replicas: int, a: str, fields: Any = ours) -> Object:
        obj = owned(child(number, spec={"replicas": replicas}, status={"ready": number}), fields)
        obj["metadata"] |= {"generation": generation, "labels": {**resource_names.labels("exp"), "a": a}}
        return obj

    store = Store()
    store.put(version(5, 1, replicas=1, a="x"))
    first = known(store)[0][FINGERPRINT]
    assert store.put(version(6, 1, replicas=1, a="x")) is None
    assert known(store)[0][FINGERPRINT] == first
    assert store.put(version(7, 2, replicas=3, a="x")) == KEY
    assert known(store)[0][FINGERPRINT] == fingerprint(version(7, 2, replicas=3, a="x")) != first
    assert store.put(version(8, 2, replicas=3, a="y")) == KEY
    assert known(store)[0][FINGERPRINT] == fingerprint(version(8, 2, replicas=3, a="y"))
    lost = (resource_names.OPERATOR, {"f:metadata": {"f:labels": {"f:a": {}}}})
    assert store.put(version(9, 2, replicas=3, a="y", fields=lost)) == KEY
    assert known(store)[0][FINGERPRINT] == fingerprint(version(9, 2, replicas=3, a="y", fields=lost))


def test_an_older_list_does_not_bring_back_a_deleted_object() -> None:
    store = Store()
    store.put(child(5))
    store.remove(child(9))
    store.replace("Service", [child(5)], version=8)
    assert known(store) == []
    store.put(child(12, uid="u2"))
    assert len(known(store)) == 1


def test_a_list_corrects_what_the_watch_missed() -> None:
    store = Store()
    store.put(child(5))
    store.put(child(6, uid="u2", name="exp-trainer"))
    assert store.replace("Service", [child(7)], version=8) == {KEY}
    assert [obj["metadata"]["name"] for obj in known(store)] == ["exp-server"]
    assert store.replace("Service", [child(7)], version=9) == set()


def test_an_object_newer_than_the_list_is_kept() -> None:
    store = Store()
    store.put(child(20))
    store.replace("Service", [], version=10)
    assert len(known(store)) == 1


def test_children_of_an_earlier_experiment_of_the_same_name_are_ignored() -> None:
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


def test_the_fingerprint_covers_edits_and_not_the_status() -> None:
    assert fingerprint(child(5, status={"a": 1})) == fingerprint(child(6, status={"a": 2}))
    assert fingerprint(child(5)) != fingerprint(child(5, spec={"clusterIP": "None"}))


def trainer_job(version: int, **status: Any) -> Object:
    job = child(version, uid="job", name="exp-trainer-1")
    job["metadata"]["labels"] |= {resource_names.ATTEMPT: "1"}
    return {**job, "kind": "Job", "spec": {"completions": 2, "template": {}}, "status": status}


def trainer_pod(version: int, phase: str, *, terminating: bool = False) -> Object:
    pod = child(version, uid="pod", name="exp-trainer-1-0")
    pod["metadata"]["labels"] |= {resource_names.ATTEMPT: "1"}
    if terminating:
        pod["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    return {**pod, "kind": "Pod", "status": {"phase": phase}}


def test_the_last_state_of_a_deleted_job_is_kept_until_the_next_attempt() -> None:
    store = Store()
    store.put(trainer_job(5))
    store.remove(trainer_job(6, conditions=[{"type": "Complete", "status": "True"}]))
    (job,) = store.deleted(KEY, "e1")
    assert (job[LAST_SEEN], job["status"]["conditions"][0]["type"]) == (DELETION_WATCHED, "Complete")
    assert job["spec"] == {"completions": 2}
    store.drop_deleted(KEY, before_attempt=1)
    assert len(store.deleted(KEY, "e1")) == 1
    store.drop_deleted(KEY, before_attempt=2)
    assert store.deleted(KEY, "e1") == []


def test_a_job_missing_from_a_list_may_have_ended_unseen() -> None:
    store = Store()
    store.put(trainer_job(5))
    store.replace("Job", [], version=8)
    (job,) = store.deleted(KEY, "e1")
    assert job[LAST_SEEN] == DELETION_MISSED


def test_a_pod_that_ended_before_its_deletion_keeps_that_state() -> None:
    store = Store()
    store.put(trainer_pod(5, "Running"))
    store.put(trainer_pod(6, "Succeeded"))
    store.put(trainer_pod(7, "Failed", terminating=True))
    assert store.objects(KEY, "e1")["Pod"][0]["status"] == {"phase": "Succeeded", "conditions": []}
    store.remove(trainer_pod(8, "Failed", terminating=True))
    (pod,) = store.deleted(KEY, "e1")
    assert pod["status"] == {"phase": "Succeeded", "conditions": []}


def test_the_number_of_deleted_objects_is_bounded() -> None:
    store = Store()
    for number in range(2 * MAX_DELETED):
        pod = trainer_pod(number + 1, "Failed")
        pod["metadata"] |= {"uid": f"pod-{number}"}
        store.remove(pod)
    assert len(store.deleted(KEY, "e1")) == MAX_DELETED


def owned(obj: Object, *entries: tuple[str, dict[str, Any]]) -> Object:
    fields = [{"manager": manager, "operation": "Apply", "fieldsV1": owned} for manager, owned in entries]
    return {**obj, "metadata": {**obj["metadata"], "managedFields": fields}}


def test_the_fingerprint_covers_only_the_fields_that_the_operator_owns() -> None:
    ours = (resource_names.OPERATOR, {"f:spec": {"f:replicas": {}, "f:env": {'k:{"name":"A"}': {"f:value": {}}}}})
    spec = {"replicas": 1, "env": [{"name": "A", "value": "1"}]}
    before = fingerprint(owned(child(1, spec=spec), ours))
    added = {**spec, "paused": True, "env": [{"name": "B"}, *spec["env"]]}
    assert fingerprint(owned(child(2, spec=added), ours, ("other", {"f:spec": {"f:paused": {}}}))) == before
    assert fingerprint(owned(child(2, spec={**spec, "replicas": 2}), ours)) != before
    assert fingerprint(owned(child(2, spec={**spec, "env": [{"name": "A", "value": "2"}]}), ours)) != before
    lost = (resource_names.OPERATOR, {"f:spec": {"f:env": {}}})
    assert fingerprint(owned(child(2, spec=spec), lost)) != before


def test_the_operator_owns_all_that_it_applied_until_somebody_changes_it() -> None:
    container = {"name": "prepare", "command": ["sh"], "env": [], "resources": {}, "ports": [{"containerPort": 80}]}
    manifest = {"kind": "Service", "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
    item = {".": {}, "f:name": {}, "f:command": {}, "f:resources": {}}  # as API servers record it: env is missing
    ports: Any = {"f:ports": {'k:{"containerPort":80}': {".": {}, "f:containerPort": {}}}}
    fields: Any = {"f:metadata": {"f:labels": {"f:a": {}}}}
    fields["f:spec"] = {"f:containers": {'k:{"name":"prepare"}': {**item, **ports}}}
    assert owns_all(slim(owned(child(1), (resource_names.OPERATOR, fields))), manifest)
    fields["f:spec"]["f:containers"] = {'k:{"name":"prepare"}': item}
    assert not owns_all(slim(owned(child(1), (resource_names.OPERATOR, fields))), manifest)


def test_the_manager_that_changed_an_object_last_is_known() -> None:
    obj = child(1)
    obj["metadata"]["managedFields"] = [
        {"manager": resource_names.OPERATOR, "operation": "Apply", "time": "2026-01-31T12:00:03Z"},
        {"manager": "kueue", "operation": "Update", "time": "2026-01-31T12:00:02Z"},
        {"manager": "early", "operation": "Update", "time": "2026-01-31T12:00:01Z"},
        {"manager": "status", "operation": "Update", "time": "2026-01-31T12:00:04Z", "subresource": "status"},
    ]
    assert last_other_manager(obj) == "kueue"
    assert last_other_manager(child(1)) is None
