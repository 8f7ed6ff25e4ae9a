"""What is written into the status of a Workload."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_operator.diagnosis import Reason
from areal_operator.observed import Object
from areal_operator.queueing import kueue
from areal_operator.queueing.report import Report, status_patch
from support.operator_objects import NOW, later
from support.queued_objects import PREEMPTED, RESERVED, admitted, queued_state, said, stored_workload

FRESH = queued_state(servers__replicas=4)
READY = said(kueue.PODS_READY, "True", "Started")
EVICTIONS = [("Preempted", "True"), ("NodeFailures", "True"), ("Deactivated", "False"), ("PodsReadyTimeout", "False")]


def patched(workload: Object, report: Report) -> Object:
    """The Workload after the patch, which must change something."""
    patch = status_patch(workload, report, NOW)
    assert patch is not None
    assert patch["metadata"]["resourceVersion"] == workload["metadata"]["resourceVersion"]
    status = {**workload["status"], **patch["status"]}
    return {**workload, "status": {key: value for key, value in status.items() if value is not None}}


def found(workload: Object, kind: str) -> Object:
    return next((one for one in workload["status"]["conditions"] if one["type"] == kind), {})


@pytest.mark.parametrize(("reason", "requeued"), EVICTIONS)
def test_quota_is_handed_back_as_kueues_own_integrations_do(reason: str, requeued: str) -> None:
    evicted = admitted(
        FRESH, said(kueue.EVICTED, "True", reason, "why"), reclaimablePods=[{"name": "servers", "count": 1}]
    )
    after = patched(evicted, Report(hand_back=True))
    assert "admission" not in after["status"]
    assert "reclaimablePods" not in after["status"]
    assert (found(after, kueue.REQUEUED)["status"], found(after, kueue.REQUEUED)["reason"]) == (requeued, reason)
    assert (found(after, kueue.QUOTA_RESERVED)["reason"], found(after, kueue.QUOTA_RESERVED)["message"]) == (
        "Pending",
        "why",
    )
    assert found(after, kueue.ADMITTED)["status"] == "False"
    assert found(after, kueue.EVICTED)["status"] == "True"  # until it is admitted again
    assert status_patch(after, Report(hand_back=True), later(5)) is None


@pytest.mark.parametrize("conditions", [(), (RESERVED,), (PREEMPTED,)], ids=["new", "reserved", "not reserved"])
def test_nothing_is_handed_back_without_eviction_and_quota(conditions: tuple[Object, ...]) -> None:
    assert status_patch(stored_workload(FRESH, *conditions), Report(hand_back=True), NOW) is None


@pytest.mark.parametrize(
    ("before", "ready", "reason"),
    [
        (None, False, "WaitForStart"),
        (None, True, "Started"),
        (READY, False, "WaitForRecovery"),
        (said(kueue.PODS_READY, "False", "WaitForRecovery"), False, "WaitForRecovery"),
        (said(kueue.PODS_READY, "False", "WaitForRecovery"), True, "Recovered"),
        (said(kueue.PODS_READY, "False", "WaitForStart"), True, "Started"),
    ],
)
def test_readiness_has_the_reasons_that_kueues_time_outs_depend_on(
    before: Object | None, ready: bool, reason: str
) -> None:
    workload = admitted(FRESH, *([] if before is None else [before]))
    after = patched(workload, Report(pods_ready=ready)) if (before or {}).get("reason") != reason or ready else workload
    condition = found(after, kueue.PODS_READY)
    assert (condition["status"], condition["reason"]) == ("True" if ready else "False", reason)


def test_readiness_is_not_reported_before_admission() -> None:
    assert status_patch(stored_workload(FRESH, RESERVED), Report(pods_ready=True), NOW) is None


def test_a_condition_keeps_the_time_of_its_last_transition() -> None:
    before = admitted(FRESH, said(kueue.PODS_READY, "False", "WaitForStart"))
    same = patched(before, Report(finished=Reason("Succeeded", "done")))
    assert found(same, kueue.ADMITTED)["lastTransitionTime"] == "2026-01-31T11:00:00Z"
    assert found(same, kueue.FINISHED)["lastTransitionTime"] == "2026-01-31T12:00:00Z"


def test_freed_servers_become_reclaimable_and_never_less_so() -> None:
    workload = admitted(FRESH, servers=4)
    after = patched(workload, Report(servers=3))
    assert after["status"]["reclaimablePods"] == [{"name": "servers", "count": 1}]
    assert status_patch(after, Report(servers=4), NOW) is None
    assert patched(after, Report(servers=1))["status"]["reclaimablePods"] == [{"name": "servers", "count": 3}]


def test_the_end_is_reported_once_and_nothing_after_it() -> None:
    after = patched(admitted(FRESH), Report(finished=Reason("Failed", "boom")))
    assert (found(after, kueue.FINISHED)["reason"], found(after, kueue.FINISHED)["message"]) == ("Failed", "boom")
    for report in (Report(finished=Reason("Failed", "other")), Report(pods_ready=True), Report(hand_back=True)):
        assert status_patch(after, report, later(9)) is None


def test_a_long_message_is_cut_off_at_the_limit_of_conditions() -> None:
    after = patched(admitted(FRESH), Report(finished=Reason("Failed", "x" * 5000)))
    assert len(found(after, kueue.FINISHED)["message"]) == 1024


REPORTS: st.SearchStrategy[Any] = st.builds(
    Report,
    pods_ready=st.sampled_from([None, True, False]),
    servers=st.sampled_from([None, 0, 1, 4, 9]),
    hand_back=st.booleans(),
    finished=st.sampled_from([None, Reason("Succeeded", "")]),
)


@given(
    report=REPORTS,
    kinds=st.sets(st.sampled_from([kueue.QUOTA_RESERVED, kueue.ADMITTED, kueue.EVICTED, kueue.PODS_READY, "Other"])),
)
def test_a_report_is_written_once_and_leaves_other_conditions_alone(report: Report, kinds: set[str]) -> None:
    workload = stored_workload(FRESH, *[said(kind) for kind in sorted(kinds)], servers=4)
    patch = status_patch(workload, report, NOW)
    if patch is None:
        return
    after = patched(workload, report)
    assert found(after, "Other") == found(workload, "Other")
    types = [one["type"] for one in after["status"]["conditions"]]
    assert len(types) == len(set(types))
    assert all(one["reason"] and one["lastTransitionTime"] for one in after["status"]["conditions"])
    assert status_patch(after, report, later(60)) is None
