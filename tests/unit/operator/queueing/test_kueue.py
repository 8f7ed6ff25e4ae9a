"""What of a Workload is kept in the cache."""

from __future__ import annotations

from areal_operator.queueing import kueue
from areal_operator.store import slim

BODY = {
    "apiVersion": kueue.API_VERSION,
    "kind": kueue.WORKLOAD,
    "metadata": {"name": "case-run", "namespace": "ns", "uid": "u", "resourceVersion": "3", "generation": 2},
    "spec": {
        "queueName": "q",
        "active": False,
        "priority": 5,
        "podSets": [{"name": "servers", "count": 2, "template": {"spec": {"containers": [{"name": "server"}]}}}],
    },
    "status": {"conditions": [{"type": "Admitted", "status": "True"}], "schedulingStats": {"evictions": []}},
}


def test_templates_and_statistics_are_left_out_of_the_cache() -> None:
    kept = slim(BODY)
    assert kept["spec"] == {
        "queueName": "q",
        "active": False,
        "priority": 5,
        "podSets": [{"name": "servers", "count": 2}],
    }
    assert kept["status"] == {"conditions": [{"type": "Admitted", "status": "True"}]}
    assert (kept["metadata"]["resourceVersion"], kept["metadata"]["generation"]) == ("3", 2)


def test_a_workload_without_a_status_can_be_kept() -> None:
    assert slim({**BODY, "status": None})["status"] == {}
